"""The adapter of the marketplace with models against a stand-in with its ABI, its refusals and its money."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from settlement.chain import local
from settlement.chain.bindings.model_job_marketplace import ProofSubmitted, RefundCreditedToDeposit
from settlement.chain.marketplace import MarketplaceJobStatus, Refusal, UnsupportedGeneration
from settlement.chain.marketplaces import marketplace_of
from settlement.chain.model_marketplace import content_id
from tests.chain.generations import DISPUTE_WINDOW, ModelWorld, administer, model_world, unused_proof
from tests.chain.world import ETH


@pytest.fixture(scope="module")
def deployed(anvil_url: str) -> ModelWorld:
    return model_world(anvil_url)


@pytest.fixture
def market(deployed: ModelWorld) -> Iterator[ModelWorld]:
    before = local.snapshot(deployed.url)
    yield deployed
    local.revert(deployed.url, snapshot_id=before)


def test_a_claim_has_the_selector_of_five_arguments(market: ModelWorld) -> None:
    call = market.adapter.claim(job_id=163, tokens=100, proof=b"proof")
    assert call.data[:4].hex() == "7c5cb561"
    assert call.data[4 + 64 : 4 + 96] == hashlib.sha256(b"proof").digest()


def test_the_content_id_is_the_one_that_a_store_would_give() -> None:
    cid = content_id(b"proof")
    raw = base64.b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))
    assert cid[0] == "b"
    assert raw[:4] == bytes([1, 0x55, 0x12, 32])
    assert raw[4:] == hashlib.sha256(b"proof").digest()
    # The content id of "hello world" as raw bytes, which is printed in many a document.
    assert content_id(b"hello world") == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


def test_a_job_is_read_from_the_eighteen_fields(market: ModelWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000, proof_timeout_window=120, max_duration=7200)
    row = market.read(market.models_market.session_jobs(job_id))
    assert (row.proof_interval, row.proof_timeout_window, row.price_per_token) == (100, 120, 2_000_000)
    job = market.found(job_id)
    assert (job.requester, job.host) == (market.user.lower(), market.host.lower())
    assert (job.payment_token, job.deposit) == (market.usdc.address.lower(), 1_000_000)
    assert (job.price_per_token, job.price_precision, job.token_budget) == (2_000_000, 1000, 500)
    assert job.idle_timeout_seconds == 120
    assert (job.expires_at - job.started_at).total_seconds() == 7200
    assert job.status is MarketplaceJobStatus.ACTIVE
    assert job.tokens_per_second == 1000


def test_a_price_below_one_unit_a_token_is_a_budget_of_many_tokens(market: ModelWorld) -> None:
    job_id = market.open_usdc(deposit=500_000, price_per_token=316)
    assert market.found(job_id).token_budget == 500_000 * 1000 // 316 == 1_582_278


def test_the_rate_is_the_models_own(anvil_url: str) -> None:
    slow = model_world(anvil_url, rate_limit=15)
    job_id = slow.open_usdc()
    assert slow.found(job_id).tokens_per_second == 7
    start = int(slow.found(job_id).started_at.timestamp())
    assert slow.refused(slow.claim(job_id, 151), sender=slow.host, at=start + 10) == "Too many"
    slow.send_at(slow.claim(job_id, 150), sender=slow.host, timestamp=start + 10)
    assert slow.found(job_id).tokens_used == 150
    terms = slow.adapter.terms(slow.client)
    assert terms.tokens_per_second == 1000


def test_an_id_that_reads_as_active_without_a_host_is_no_job(market: ModelWorld) -> None:
    assert market.read(market.models_market.session_jobs(999)).status == 0
    job_id = market.open_usdc()
    found = market.adapter.find_jobs(market.client, [999, job_id])
    assert [job and job.job_id for job in found] == [None, job_id]


def test_a_hosts_jobs_are_listed_up_to_the_index_that_the_contract_refuses(market: ModelWorld) -> None:
    ids = [market.open_usdc() for _ in range(3)]
    page = market.adapter.host_job_ids
    assert page(market.client, host=market.host, start=0, limit=60) == ids
    assert page(market.client, host=market.host, start=2, limit=1) == ids[2:]


@pytest.mark.parametrize("coin", ["eth", "usdc"])
def test_claims_pay_nothing_and_the_completion_pays_all_to_the_last_unit(market: ModelWorld, coin: str) -> None:
    token = ETH if coin == "eth" else market.usdc.address
    # A price that is no multiple of the precision: each token costs 2003.137 or so.
    price = 1_000_000_007_137 if coin == "eth" else 2_003_137
    deposit = 10**15 if coin == "eth" else 2_000_001
    job_id = (market.open_eth if coin == "eth" else market.open_usdc)(deposit=deposit, price_per_token=price)
    user = market.balance(market.user, token)
    for count in (100, 257):
        market.pass_time(60)
        proof = unused_proof()
        claimed = market.send(market.claim(job_id, count, proof=proof), sender=market.host)
        [claim] = market.adapter.accepted_claims(market.raw_logs(claimed))
        assert (claim.job_id, claim.host, claim.tokens) == (job_id, market.host.lower(), count)
        assert claim.proof_hash == market.adapter.claim_hash(proof) == "0x" + hashlib.sha256(proof).hexdigest()
        [event] = market.events(claimed, ProofSubmitted)
        assert (event.proof_cid, event.delta_cid) == (content_id(proof), "")
        assert (claim.host_amount, claim.treasury_amount, claim.host_position) == (0, 0, None)
    assert market.earned(token) == 0
    market.pass_time(DISPUTE_WINDOW)
    done = market.send(market.adapter.complete(job_id=job_id, reference="cid"), sender=market.host)
    gross = 357 * price // 1000
    treasury = gross * 1000 // 10_000
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.job_id, ended.status, ended.tokens) == (job_id, MarketplaceJobStatus.COMPLETED, 357)
    assert (ended.host_amount, ended.refund, ended.settles) == (gross - treasury, deposit - gross, True)
    assert market.earned(token) == gross - treasury
    assert market.balance(market.user, token) == user + deposit - gross
    assert market.balance(market.models_market.address, token) == treasury
    job = market.found(job_id)
    assert (job.paid_to_host, job.paid_to_treasury, job.refunded) == (gross - treasury, treasury, deposit - gross)


def test_the_host_that_is_given_the_whole_deposit_leaves_no_refund(market: ModelWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000)
    market.pass_time(60)
    market.send(market.claim(job_id, 500), sender=market.host)
    done = market.send(market.complete(job_id), sender=market.user)
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.host_amount, ended.refund) == (900_000, 0)


def test_an_early_end_by_the_depositor_pays_the_host_a_fee_that_the_treasury_does_not_share(
    market: ModelWorld,
) -> None:
    job_id = market.open_usdc(deposit=3_000_000, price=2000)
    done = market.send(market.complete(job_id), sender=market.user)
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.tokens, ended.host_amount, ended.refund) == (0, 2_000_000, 1_000_000)
    job = market.found(job_id)
    assert (job.paid_to_host, job.paid_to_treasury, job.refunded) == (2_000_000, 0, 1_000_000)
    assert market.earned(market.usdc.address) == 2_000_000


def test_the_early_fee_is_never_above_the_deposit(market: ModelWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000)
    done = market.send(market.complete(job_id), sender=market.user)
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.host_amount, ended.refund) == (1_000_000, 0)


def test_a_timeout_is_one_end_and_costs_no_early_fee(market: ModelWorld) -> None:
    job_id = market.open_usdc(proof_timeout_window=60)
    start = int(market.found(job_id).started_at.timestamp())
    call = market.adapter.timeout(job_id=job_id)
    assert market.refused(call, sender=market.user, at=start + 60) == "Not timeout"
    ended_in = market.send_at(call, sender=market.user, timestamp=start + 61)
    [ended] = market.adapter.ended_jobs(market.raw_logs(ended_in))
    assert (ended.status, ended.tokens) == (MarketplaceJobStatus.TIMED_OUT, 0)
    assert (ended.host_amount, ended.refund) == (0, 1_000_000)


def test_a_refund_that_is_not_taken_waits_as_a_deposit_and_blocks_nobody(market: ModelWorld) -> None:
    # A contract without a receive function: the token itself.
    payer = market.usdc.address
    local.rpc(market.url, "anvil_impersonateAccount", [payer])
    local.fund(market.url, address=payer, wei=10**19)
    job_id = market.read(market.models_market.next_job_id())
    market.send(market.create_eth(deposit=10**15, price=10**11), sender=payer)
    market.pass_time(60)
    market.send(market.claim(job_id, 200), sender=market.host)
    market.pass_time(DISPUTE_WINDOW)
    done = market.send(market.complete(job_id), sender=market.host)
    gross = 200 * 10**11
    [credited] = market.events(done, RefundCreditedToDeposit)
    assert (credited.depositor, credited.amount) == (payer, 10**15 - gross)
    assert market.read(market.models_market.get_deposit_balance(account=payer, token=ETH)) == 10**15 - gross
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.host_amount, ended.refund) == (gross * 9 // 10, 10**15 - gross)


def test_every_refusal_of_a_claim_is_told_by_its_reason(market: ModelWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000, proof_interval=200)
    assert market.found(job_id).first_claim_tokens == 200
    start = int(market.found(job_id).started_at.timestamp())
    proof = unused_proof()
    meaning = market.adapter.meaning_of
    cases = [
        (market.claim(job_id, 200), market.stranger, 60, "Not host", Refusal.UNEXPLAINED),
        (market.claim(777, 200), market.host, 60, "Not host", Refusal.UNEXPLAINED),
        (market.claim(job_id, 99), market.host, 60, "Min tokens", Refusal.PERMANENT),
        (market.claim(job_id, 199), market.host, 60, "Low first", Refusal.UNEXPLAINED),
        (market.claim(job_id, 2001), market.host, 1, "Too many", Refusal.TOO_FAST),
        (market.claim(job_id, 501), market.host, 60, "Over dep", Refusal.PERMANENT),
    ]
    for call, sender, after, reason, expected in cases:
        assert market.refused(call, sender=sender, at=start + after) == reason
        assert meaning(reason) is expected
    market.send_at(market.claim(job_id, 200, proof=proof), sender=market.host, timestamp=start + 60)
    other = market.open_usdc(deposit=1_000_000, price=2000)
    for used in (job_id, other):
        call = market.claim(used, 100, proof=proof)
        assert market.refused(call, sender=market.host, at=market.now() + 60) == "Proof already used"
    assert meaning("Proof already used") is Refusal.ALREADY_CLAIMED
    market.send(market.complete(job_id), sender=market.user)
    assert market.refused(market.claim(job_id, 100), sender=market.host, at=market.now() + 60) == "Not active"
    assert meaning("Not active") is Refusal.PERMANENT
    assert meaning("Host not active") is Refusal.UNEXPLAINED


def test_a_paused_marketplace_and_an_inactive_host_are_waited_for(market: ModelWorld) -> None:
    job_id = market.open_usdc()
    at = market.now() + 60
    market.send(market.nodes.set_active(False), sender=market.host)
    assert market.refused(market.claim(job_id, 100), sender=market.host, at=at) == "Host not active"
    market.send(market.nodes.set_active(True), sender=market.host)
    market.send(administer(market.models_market.address, "setPaused(bool)", True), sender=market.treasury)
    paused = market.refused(market.claim(job_id, 100), sender=market.host, at=at)
    assert market.adapter.meaning_of(paused) is Refusal.UNEXPLAINED
    market.pass_time(60)
    market.send(administer(market.models_market.address, "setPaused(bool)", False), sender=market.treasury)
    market.send(market.claim(job_id, 100), sender=market.host)
    assert market.found(job_id).tokens_used == 100


def test_the_hosts_window_begins_anew_with_each_claim(market: ModelWorld) -> None:
    job_id = market.open_usdc()
    market.pass_time(100)
    market.send(market.claim(job_id, 100), sender=market.host)
    last = int(market.found(job_id).last_proof_at.timestamp())
    call = market.complete(job_id)
    assert market.refused(call, sender=market.stranger) == "Not depositor or host"
    reason = market.refused(call, sender=market.host, at=last + DISPUTE_WINDOW - 1)
    assert reason == "Dispute wait"
    assert market.adapter.meaning_of(reason) is Refusal.DISPUTE_WINDOW
    market.send_at(call, sender=market.host, timestamp=last + DISPUTE_WINDOW)
    assert market.found(job_id).status is MarketplaceJobStatus.COMPLETED


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"token": "0x" + "12" * 20}, "Bad token"),
        ({"deposit": 499_999}, "Low deposit"),
        ({"deposit": 10**12 + 1}, "Over max"),
        ({"price": 0}, "Bad price"),
        ({"host": ETH}, "No host"),
        ({"host": "0x" + "12" * 20}, "Host not active"),
        ({"model_id": b"\1" * 32}, "Bad model"),
        ({"max_duration": 0}, "Bad dur"),
        ({"proof_interval": 0}, "Bad interval"),
        ({"proof_timeout_window": 59}, "Bad timeout"),
        ({"proof_timeout_window": 3601}, "Bad timeout"),
        ({"proof_interval": 99}, "Low interval"),
        ({"proof_interval": 501}, "Low deposit"),
    ],
)
def test_a_job_that_the_marketplace_does_not_open(market: ModelWorld, terms: dict[str, Any], reason: str) -> None:
    assert market.refused(market.create_usdc(**terms), sender=market.user) == reason


def test_a_deployment_without_a_model_registry_is_named(market: ModelWorld) -> None:
    with pytest.raises(UnsupportedGeneration, match="CONTRACT_MODEL_REGISTRY"):
        marketplace_of(replace(market.deployment, model_registry=None))


def test_the_functions_that_the_node_needs_are_in_the_code(market: ModelWorld) -> None:
    code = market.client.code(market.models_market.address)
    needed = market.adapter.needed_selectors()
    assert [name for name, selector in needed.items() if selector not in code] == []
    assert "submitProofOfWork(uint256,uint256,bytes32,string,string)" in needed
