"""What the registries and the proof system remember."""

from __future__ import annotations

import pytest
from eth_utils.crypto import keccak

from settlement.chain.bindings import events
from settlement.chain.bindings.structs import Claim, Model, NodeInfo
from tests.chain.world import ETH, MIN_PRICE_NATIVE, MIN_PRICE_STABLE, MOCK_SELECTOR, World


def test_a_registered_host_is_known_in_full(world: World) -> None:
    assert world.read(world.nodes.get_node_full_info(world.host)) == NodeInfo(
        operator=world.host,
        staked_amount=10**17,
        active=True,
        metadata='{"publicKey": "02"}',
        api_url="http://host.example:8080",
        model_ids=(world.model_id,),
        min_price_native=MIN_PRICE_NATIVE,
        min_price_stable=MIN_PRICE_STABLE,
    )
    assert world.read(world.nodes.node_supports_model(operator=world.host, model_id=world.model_id))
    assert world.read(world.nodes.node_page(offset=0, limit=10)) == (world.host,)
    assert world.read(world.nodes.node_page(offset=1, limit=10)) == ()


def test_an_unknown_host_is_empty(world: World) -> None:
    assert world.read(world.nodes.get_node_full_info(world.user)) == NodeInfo(ETH, 0, False, "", "", (), 0, 0)
    assert not world.read(world.nodes.is_active_node(world.user))
    assert not world.read(world.nodes.node_supports_model(operator=world.user, model_id=world.model_id))


def test_a_host_updates_its_entry(world: World) -> None:
    nodes = world.nodes
    for call in (
        nodes.update_metadata('{"publicKey": "03"}'),
        nodes.update_api_url("http://new.example"),
        nodes.update_supported_models([world.model_id, world.model_id]),
        nodes.update_pricing_native(5),
        nodes.update_pricing_stable(6),
        nodes.stake(10),
        nodes.set_active(False),
    ):
        world.send(call, sender=world.host)
    info = world.read(nodes.get_node_full_info(world.host))
    assert (info.metadata, info.api_url, info.active) == ('{"publicKey": "03"}', "http://new.example", False)
    assert (info.min_price_native, info.min_price_stable) == (5, 6)
    assert (info.staked_amount, len(info.model_ids)) == (10**17 + 10, 2)


def test_unregistering_returns_the_stake(world: World) -> None:
    held = world.balance(world.nodes.address, ETH)
    receipt = world.send(world.nodes.unregister_node(), sender=world.host)
    assert world.events(receipt, events.NodeUnregistered) == [events.NodeUnregistered(world.host, 10**17)]
    assert held - world.balance(world.nodes.address, ETH) == 10**17
    assert world.read(world.nodes.node_count()) == 0
    assert world.read(world.nodes.get_node_full_info(world.host)) == NodeInfo(ETH, 0, False, "", "", (), 0, 0)
    assert not world.read(world.nodes.is_active_node(world.host))
    world.send(world.register(world.host), sender=world.host)


def test_an_unregistered_host_still_claims_its_open_session(world: World) -> None:
    job_id = world.open_usdc()
    world.send(world.nodes.unregister_node(), sender=world.host)
    world.pass_time(10)
    world.send(world.close(job_id, 50), sender=world.host)
    assert world.job(job_id).withdrawn_by_host == 90_000


def test_a_model_is_named_by_repository_and_file(world: World) -> None:
    named = {"repo": "CohereForAI/TinyVicuna-1B-32k-GGUF", "file": "tiny-vicuna-1b.q4_k_m.gguf"}
    model_id = world.read(world.models.get_model_id(**named))
    assert model_id == keccak(text="CohereForAI/TinyVicuna-1B-32k-GGUF/tiny-vicuna-1b.q4_k_m.gguf")
    assert model_id.hex().startswith("0b75a2061e70e736924a30c0a327db7ab7194021")
    world.send(world.models.add_trusted_model(**named, sha256_hash=b"\7" * 32), sender=world.owner)
    assert world.read(world.models.get_model(model_id)) == Model(
        **named, sha256_hash=b"\7" * 32, active=True, added_at=world.now()
    )
    assert world.read(world.models.get_all_models()) == (world.model_id, model_id)
    world.send(world.models.set_model_active(model_id=model_id, active=False), sender=world.owner)
    assert not world.read(world.models.is_model_approved(model_id))


def test_the_proof_system_tells_which_verifiers_it_believes(world: World) -> None:
    assert world.read(world.mock.selector()) == MOCK_SELECTOR
    assert world.read(world.proofs.verifier_of(MOCK_SELECTOR)) == world.mock.address
    world.send(world.proofs.unlist_verifier(MOCK_SELECTOR), sender=world.owner)
    assert not world.read(world.proofs.has_verifier(MOCK_SELECTOR))
    job_id = world.open_usdc()
    world.pass_time(10)
    refused = world.refusal(world.claim(job_id, 100), sender=world.host)
    assert str(refused) == f"UnknownVerifier(selector=0x{MOCK_SELECTOR.hex()})"


def test_a_verifier_with_state_is_told_the_whole_claim(world: World) -> None:
    verifier = world.deploy("RecordingVerifier")
    world.send(world.proofs.list_verifier(verifier), sender=world.owner)
    selector = keccak(text="fabstir.recording.test")[:4]
    job_id = world.open_usdc()
    world.pass_time(10)
    world.send(world.claim(job_id, 150), sender=world.host)
    world.pass_time(10)
    refused = world.refusal(world.claim(job_id, 100, proof=selector + b"false"), sender=world.host)
    assert refused.name == "ProofRejected"
    world.send(world.claim(job_id, 100, proof=selector + b"true"), sender=world.host)
    answer = world.w3.eth.call({"to": verifier, "data": keccak(text="lastClaim()")[:4]})
    words = [int.from_bytes(answer[at : at + 32], "big") for at in range(0, 160, 32)]
    assert words == [int(world.marketplace.address, 16), job_id, int(world.host, 16), 150, 100]


@pytest.mark.parametrize(("body", "believed"), [(b"{}", True), (b"", False)])
def test_the_mock_verifier_believes_any_body(world: World, body: bytes, believed: bool) -> None:
    claim = Claim(world.marketplace.address, 1, world.host, tokens_before=0, tokens_claimed=100)
    assert world.read(world.mock.verify_claim(arg0=claim, body=body)) is believed


def test_sessions_of_a_party_are_paged(world: World) -> None:
    opened = [world.open_eth() for _ in range(5)]
    market = world.marketplace
    before = world.read(market.host_session_count(world.host)) - 5
    assert world.read(market.host_session_page(host=world.host, offset=before + 1, limit=2)) == tuple(opened[1:3])
    assert world.read(market.host_session_page(host=world.host, offset=before + 3, limit=99)) == tuple(opened[3:])
    assert world.read(market.user_session_page(requester=world.user, offset=10**9, limit=2**256 - 1)) == ()
    assert world.read(market.host_sessions(host=world.host, index=before)) == opened[0]
    assert world.read(market.user_sessions(requester=world.user, index=before + 4)) == opened[4]
    assert world.refusal(market.host_sessions(host=world.host, index=99), sender=world.user).name == "Panic(0x32)"
