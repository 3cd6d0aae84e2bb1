"""Every refusal of the contracts around the marketplace: constructors, earnings, proofs, registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from settlement.chain import local
from settlement.chain.bindings import ProofSystem
from settlement.chain.contracts import Call, load_artifact
from tests.chain.world import ETH, World, refusal_of

NOWHERE = "0x" + "22" * 20
TERMS: dict[str, Any] = {
    "nodes": NOWHERE,
    "earnings": NOWHERE,
    "proofs": NOWHERE,
    "treasury": NOWHERE,
    "fee": 1000,
    "window": 0,
    "rate": 1000,
    "idle": 3600,
}
CONSTRUCTING: list[tuple[str, dict[str, Any]]] = [
    ("ZeroAddress()", {"nodes": ETH}),
    ("ZeroAddress()", {"earnings": ETH}),
    ("ZeroAddress()", {"proofs": ETH}),
    ("ZeroAddress()", {"treasury": ETH}),
    ("FeeTooHigh(fee_basis_points=10001)", {"fee": 10001}),
    ("DurationOutOfRange(duration=31536001, maximum=31536000)", {"window": 31536001}),
    ("RateOutOfRange(tokens_per_second=0)", {"rate": 0}),
    ("RateOutOfRange(tokens_per_second=1000000000001)", {"rate": 10**12 + 1}),
    ("IdleTimeoutOutOfRange(seconds_idle=0)", {"idle": 0}),
]


@pytest.mark.parametrize(("expected", "terms"), CONSTRUCTING, ids=range(len(CONSTRUCTING)))
def test_a_marketplace_with_unfit_terms_is_not_deployed(world: World, expected: str, terms: dict[str, Any]) -> None:
    assert str(deployment_refusal(world, "JobMarketplace", *(TERMS | terms).values())) == expected


def test_a_node_registry_needs_a_model_registry(world: World) -> None:
    assert str(deployment_refusal(world, "NodeRegistry", ETH, 0)) == "ZeroAddress()"


def deployment_refusal(world: World, name: str, *arguments: Any) -> object:
    data = load_artifact(name).deployment_data(*arguments)
    return refusal_of(lambda: world.w3.eth.call({"from": world.owner, "data": data}))


EARNINGS: list[tuple[str, str, Callable[[World], Call[Any]]]] = [
    ("host", "NotAuthorizedCaller", lambda world: credit(world, amount=1, value=1)),
    ("owner", "ZeroAddress", lambda world: credit(world, host=ETH, amount=1, value=1)),
    ("owner", "ZeroAmount", lambda world: credit(world, amount=0)),
    ("owner", "WrongValue", lambda world: credit(world, amount=2, value=1)),
    ("owner", "WrongValue", lambda world: credit(world, amount=1, token=world.usdc.address, value=1)),
    ("owner", "UnbackedCredit", lambda world: credit(world, amount=1, token=world.usdc.address)),
    ("host", "ZeroAmount", lambda world: world.earnings.withdraw(amount=0, token=ETH)),
    ("host", "InsufficientEarnings", lambda world: world.earnings.withdraw(amount=1, token=ETH)),
    ("host", "NothingToWithdraw", lambda world: world.earnings.withdraw_all(ETH)),
    ("host", "NothingToWithdraw", lambda world: world.earnings.withdraw_multiple([ETH, world.usdc.address])),
    ("host", "NothingToWithdraw", lambda world: world.earnings.withdraw_multiple([])),
    ("owner", "ZeroAddress", lambda world: world.earnings.set_authorized_caller(caller=ETH, authorized=True)),
    (
        "host",
        "OwnableUnauthorizedAccount",
        lambda world: world.earnings.set_authorized_caller(caller=world.host, authorized=True),
    ),
]


def credit(world: World, *, amount: int, host: str = NOWHERE, token: str = ETH, value: int = 0) -> Call[None]:
    return world.earnings.credit_earnings(host=host, amount=amount, token=token, value=value)


@pytest.mark.parametrize(("caller", "expected", "build"), EARNINGS, ids=range(len(EARNINGS)))
def test_the_earnings_contract_refuses(
    world: World, caller: str, expected: str, build: Callable[[World], Call[Any]]
) -> None:
    authorised = world.earnings.set_authorized_caller(caller=world.owner, authorized=True)
    world.send(authorised, sender=world.owner)
    assert world.refusal(build(world), sender=getattr(world, caller)).name == expected


def test_a_host_withdraws_all_of_one_token(world: World) -> None:
    authorised = world.earnings.set_authorized_caller(caller=world.owner, authorized=True)
    world.send(authorised, sender=world.owner)
    world.send(credit(world, host=world.host, amount=7, value=7), sender=world.owner)
    assert world.read(world.earnings.outstanding(ETH)) == 7
    world.send(world.earnings.withdraw_all(ETH), sender=world.host)
    assert world.read(world.earnings.outstanding(ETH)) == 0
    assert world.balance(world.earnings.address, ETH) == 0


def test_ether_sent_astray_is_refused(world: World) -> None:
    for address in (world.earnings.address, world.marketplace.address, world.nodes.address):
        refusal_of(lambda to=address: world.w3.eth.call({"from": world.user, "to": to, "value": 1}))
    assert world.balance(world.marketplace.address, ETH) == world.balance(world.earnings.address, ETH) == 0


def verify(proofs: ProofSystem) -> Call[bool]:
    return proofs.verify_claim(job_id=1, host=NOWHERE, tokens_before=0, tokens_claimed=100, proof=b"12345")


PROOFS: list[tuple[str, str, Callable[[World], Call[Any]]]] = [
    ("host", "NotMarketplace", lambda world: verify(world.proofs)),
    ("owner", "NotMarketplace", lambda world: verify(world.proofs)),
    ("owner", "ZeroAddress", lambda world: world.proofs.set_marketplace(marketplace=ETH, authorized=True)),
    ("owner", "ZeroAddress", lambda world: world.proofs.list_verifier(ETH)),
    ("owner", "VerifierAlreadyListed", lambda world: world.proofs.list_verifier(world.mock.address)),
    ("owner", "UnknownVerifier", lambda world: world.proofs.unlist_verifier(b"\1\2\3\4")),
    ("host", "OwnableUnauthorizedAccount", lambda world: world.proofs.list_verifier(world.mock.address)),
    ("host", "OwnableUnauthorizedAccount", lambda world: world.proofs.unlist_verifier(b"\1\2\3\4")),
    (
        "host",
        "OwnableUnauthorizedAccount",
        lambda world: world.proofs.set_marketplace(marketplace=world.host, authorized=True),
    ),
]


@pytest.mark.parametrize(("caller", "expected", "build"), PROOFS, ids=range(len(PROOFS)))
def test_the_proof_system_refuses(
    world: World, caller: str, expected: str, build: Callable[[World], Call[Any]]
) -> None:
    assert world.refusal(build(world), sender=getattr(world, caller)).name == expected


NODES: list[tuple[str, str, Callable[[World], Call[Any]]]] = [
    ("host", "AlreadyRegistered", lambda world: world.register(world.host)),
    ("user", "StakeTooSmall", lambda world: world.register(world.user, value=10**17 - 1)),
    ("user", "EmptyMetadata", lambda world: world.register(world.user, metadata="")),
    ("user", "EmptyApiUrl", lambda world: world.register(world.user, api_url="")),
    ("user", "NoModels", lambda world: world.register(world.user, model_ids=[])),
    ("user", "ModelNotApproved", lambda world: world.register(world.user, model_ids=[bytes(32)])),
    ("user", "ZeroMinimumPrice", lambda world: world.register(world.user, min_price_native=0)),
    ("user", "ZeroMinimumPrice", lambda world: world.register(world.user, min_price_stable=0)),
    ("user", "NotRegistered", lambda world: world.nodes.unregister_node()),
    ("user", "NotRegistered", lambda world: world.nodes.stake(1)),
    ("user", "NotRegistered", lambda world: world.nodes.set_active(True)),
    ("user", "NotRegistered", lambda world: world.nodes.update_metadata("{}")),
    ("user", "NotRegistered", lambda world: world.nodes.update_api_url("http://a")),
    ("user", "NotRegistered", lambda world: world.nodes.update_supported_models([world.model_id])),
    ("user", "NotRegistered", lambda world: world.nodes.update_pricing_native(1)),
    ("user", "NotRegistered", lambda world: world.nodes.update_pricing_stable(1)),
    ("host", "EmptyMetadata", lambda world: world.nodes.update_metadata("")),
    ("host", "EmptyApiUrl", lambda world: world.nodes.update_api_url("")),
    ("host", "NoModels", lambda world: world.nodes.update_supported_models([])),
    ("host", "ModelNotApproved", lambda world: world.nodes.update_supported_models([b"\1" * 32])),
    ("host", "ZeroMinimumPrice", lambda world: world.nodes.update_pricing_native(0)),
    ("host", "ZeroMinimumPrice", lambda world: world.nodes.update_pricing_stable(0)),
]


@pytest.mark.parametrize(("caller", "expected", "build"), NODES, ids=range(len(NODES)))
def test_the_node_registry_refuses(
    world: World, caller: str, expected: str, build: Callable[[World], Call[Any]]
) -> None:
    assert world.refusal(build(world), sender=getattr(world, caller)).name == expected


MODELS: list[tuple[str, str, Callable[[World], Call[Any]]]] = [
    ("owner", "EmptyModelName", lambda world: add_model(world, repo="")),
    ("owner", "EmptyModelName", lambda world: add_model(world, file="")),
    ("owner", "ModelAlreadyAdded", lambda world: add_model(world, repo="acme/tiny", file="tiny.gguf")),
    ("host", "OwnableUnauthorizedAccount", lambda world: add_model(world)),
    ("owner", "UnknownModel", lambda world: world.models.set_model_active(model_id=bytes(32), active=True)),
    ("owner", "UnknownModel", lambda world: world.models.get_model(bytes(32))),
    (
        "host",
        "OwnableUnauthorizedAccount",
        lambda world: world.models.set_model_active(model_id=world.model_id, active=False),
    ),
]


def add_model(world: World, *, repo: str = "acme/other", file: str = "other.gguf") -> Call[bytes]:
    return world.models.add_trusted_model(repo=repo, file=file, sha256_hash=bytes(32))


@pytest.mark.parametrize(("caller", "expected", "build"), MODELS, ids=range(len(MODELS)))
def test_the_model_registry_refuses(
    world: World, caller: str, expected: str, build: Callable[[World], Call[Any]]
) -> None:
    assert world.refusal(build(world), sender=getattr(world, caller)).name == expected


def test_a_stake_that_cannot_be_returned_keeps_the_host_registered(world: World) -> None:
    operator = world.deploy("RejectingPayer", world.marketplace.address, False)
    local.fund(world.url, address=operator, wei=10**18)
    local.rpc(world.url, "anvil_impersonateAccount", [operator])
    world.send(world.register(operator), sender=operator)
    refused = world.refusal(world.nodes.unregister_node(), sender=operator)
    assert str(refused) == f"PaymentFailed(recipient={operator}, amount={10**17})"
