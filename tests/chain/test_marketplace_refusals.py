"""Every refusal of the marketplace, by the custom error that a caller decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak

from settlement.chain.bindings import JobMarketplace
from settlement.chain.contracts import Call
from tests.chain.world import ETH, MOCK_SELECTOR, World, mock_proof

Attempt = Callable[[World], tuple[Call[Any], ChecksumAddress]]
DAY = 86400
YEAR = 365 * DAY


def creating(**terms: Any) -> Attempt:
    return lambda world: (world.create_eth(**terms), world.user)


def creating_with_token(**terms: Any) -> Attempt:
    return lambda world: (world.create_usdc(**terms), world.user)


def for_host(pick: Callable[[World], ChecksumAddress]) -> Attempt:
    return lambda world: (world.create_eth(host=pick(world)), world.user)


def resting_host(world: World) -> ChecksumAddress:
    world.send(world.nodes.set_active(False), sender=world.host)
    return world.host


def unregistered_host(world: World) -> ChecksumAddress:
    world.send(world.nodes.unregister_node(), sender=world.host)
    return world.host


CREATING: list[tuple[str, Attempt]] = [
    ("DepositTooSmall(deposit=99999999999999, minimum=100000000000000)", creating(deposit=10**14 - 1)),
    ("DepositTooSmall(deposit=499999, minimum=500000)", creating_with_token(deposit=499_999)),
    (
        "DepositTooLarge(deposit=1000000000001, maximum=1000000000000)",
        creating_with_token(deposit=10**12 + 1),
    ),
    ("ZeroPrice()", creating(price=0)),
    (f"DurationOutOfRange(duration=0, maximum={YEAR})", creating(max_duration=0)),
    (f"DurationOutOfRange(duration={YEAR + 1}, maximum={YEAR})", creating(max_duration=YEAR + 1)),
    ("ProofIntervalTooSmall(proof_interval=99, minimum=100)", creating(proof_interval=99)),
    (
        "DepositBelowProofInterval(affordable=500, proof_interval=501)",
        creating_with_token(proof_interval=501),
    ),
    ("PriceBelowMinimum(price=999999999, minimum=1000000000)", creating(price=10**9 - 1)),
    ("PriceBelowMinimum(price=99, minimum=100)", creating_with_token(price=99)),
    (f"TokenNotAccepted(token={ETH})", creating_with_token(token=ETH)),
    (f"TokenNotAccepted(token=0x{'11' * 20})", creating_with_token(token=f"0x{'11' * 20}")),
]


@pytest.mark.parametrize(("expected", "attempt"), CREATING, ids=[row[0] for row in CREATING])
def test_a_session_is_refused_with_a_reason(world: World, expected: str, attempt: Attempt) -> None:
    call, sender = attempt(world)
    assert str(world.refusal(call, sender=sender)) == expected


def test_an_ether_deposit_has_a_maximum(world: World) -> None:
    call = world.create_eth(deposit=1000 * 10**18 + 1)
    assert world.refusal(call, sender=world.user).name == "DepositTooLarge"


def test_only_registered_and_active_hosts_get_sessions(world: World) -> None:
    call = world.create_eth(host=world.stranger)
    assert str(world.refusal(call, sender=world.user)) == f"HostNotRegistered(host={world.stranger})"
    call = world.create_eth(host=resting_host(world))
    assert str(world.refusal(call, sender=world.user)) == f"HostNotActive(host={world.host})"
    call = world.create_eth(host=unregistered_host(world))
    assert world.refusal(call, sender=world.user).name == "HostNotRegistered"


def test_a_deposit_that_was_not_approved_is_refused_by_the_token(world: World) -> None:
    assert world.refusal(world.create_usdc(), sender=world.user).name == "ERC20InsufficientAllowance"


UNKNOWN_JOB: list[Callable[[JobMarketplace, int], Call[Any]]] = [
    lambda market, job: market.submit_proof_of_work(job_id=job, tokens_claimed=100, proof=mock_proof()),
    lambda market, job: market.complete_session_job(job_id=job, conversation_cid=""),
    lambda market, job: market.complete_session_job_with_proof(
        job_id=job, tokens_claimed=1, proof=mock_proof(), conversation_cid=""
    ),
    lambda market, job: market.trigger_session_timeout(job),
    lambda market, job: market.session_jobs(job),
    lambda market, job: market.session_deadline(job),
    lambda market, job: market.affordable_tokens(job),
]


@pytest.mark.parametrize("job_id", [0, 999, 2**256 - 1])
@pytest.mark.parametrize("build", UNKNOWN_JOB)
def test_an_unknown_job_is_refused_everywhere(
    world: World, build: Callable[[JobMarketplace, int], Call[Any]], job_id: int
) -> None:
    refused = world.refusal(build(world.marketplace, job_id), sender=world.host)
    assert str(refused) == f"UnknownJob(job_id={job_id})"


def claims(tokens: int, *, proof: bytes | None = None) -> Callable[[World, int], Call[Any]]:
    return lambda world, job_id: world.claim(job_id, tokens, proof=proof)


def rejected(body: bytes) -> str:
    return f"ProofRejected(proof_hash=0x{keccak(body).hex()})"


CLAIMING: list[tuple[str, Callable[[World, int], Call[Any]]]] = [
    ("TooFewTokens(claimed=0, minimum=100)", claims(0)),
    ("TooFewTokens(claimed=99, minimum=100)", claims(99)),
    ("TooFewTokens(claimed=0, minimum=1)", lambda world, job_id: world.close(job_id, 0)),
    ("ExceedsDeposit(claimed=501, affordable=500)", claims(501)),
    ("ExceedsDeposit(claimed=501, affordable=500)", lambda world, job_id: world.close(job_id, 501)),
    ("ProofTooShort(length=0)", claims(100, proof=b"")),
    ("ProofTooShort(length=3)", claims(100, proof=b"abc")),
    ("UnknownVerifier(selector=0x01020304)", claims(100, proof=bytes([1, 2, 3, 4, 5]))),
    (rejected(MOCK_SELECTOR), claims(100, proof=MOCK_SELECTOR)),
]


@pytest.mark.parametrize(("expected", "build"), CLAIMING, ids=range(len(CLAIMING)))
def test_a_claim_is_refused_with_a_reason(
    world: World, expected: str, build: Callable[[World, int], Call[Any]]
) -> None:
    job_id = world.open_usdc()
    world.pass_time(10)
    assert str(world.refusal(build(world, job_id), sender=world.host)) == expected


def test_a_refused_claim_leaves_no_trace(world: World) -> None:
    job_id = world.open_usdc()
    before = world.job(job_id)
    world.pass_time(10)
    world.refusal(world.claim(job_id, 501), sender=world.host)
    assert world.job(job_id) == before


def test_only_the_assigned_host_claims(world: World) -> None:
    job_id = world.open_eth()
    world.pass_time(10)
    for caller in (world.user, world.stranger, world.owner):
        for call in (world.claim(job_id, 100), world.close(job_id, 100)):
            refused = world.refusal(call, sender=caller)
            assert str(refused) == f"NotAssignedHost(caller={caller}, host={world.host})"


def test_a_proof_is_accepted_once_over_all_jobs(world: World) -> None:
    first, second = world.open_usdc(), world.open_eth()
    proof = mock_proof()
    world.pass_time(10)
    world.send(world.claim(first, 100, proof=proof), sender=world.host)
    assert world.read(world.marketplace.used_proofs(keccak(proof)))
    world.pass_time(10)
    for call in (
        world.claim(first, 100, proof=proof),
        world.claim(second, 100, proof=proof),
        world.close(second, 1, proof=proof),
    ):
        refused = world.refusal(call, sender=world.host)
        assert str(refused) == f"ProofAlreadyUsed(proof_hash=0x{keccak(proof).hex()})"


def test_nothing_can_be_claimed_or_ended_after_the_end(world: World) -> None:
    completed, timed_out = world.open_eth(), world.open_eth(max_duration=100)
    world.send(world.complete(completed), sender=world.user)
    world.pass_time(101)
    world.send(world.marketplace.trigger_session_timeout(timed_out), sender=world.stranger)
    for job_id, status in ((completed, 1), (timed_out, 2)):
        for call in (
            world.claim(job_id, 100),
            world.close(job_id, 100),
            world.complete(job_id),
            world.marketplace.trigger_session_timeout(job_id),
        ):
            refused = world.refusal(call, sender=world.host)
            assert str(refused) == f"SessionNotActive(job_id={job_id}, status={status})"
        assert world.read(world.marketplace.affordable_tokens(job_id)) == 0


def test_only_a_participant_completes(world: World) -> None:
    job_id = world.open_eth()
    refused = world.refusal(world.complete(job_id), sender=world.stranger)
    assert str(refused) == f"NotParticipant(caller={world.stranger})"


def test_without_a_refund_or_a_fee_there_is_nothing_to_withdraw(world: World) -> None:
    call: Call[None] = world.marketplace.withdraw_refund(ETH)
    assert world.refusal(call, sender=world.user).name == "NothingToRefund"
    call = world.marketplace.withdraw_refund_to(token=ETH, recipient=world.stranger)
    assert world.refusal(call, sender=world.user).name == "NothingToRefund"
    call = world.marketplace.withdraw_treasury(ETH)
    assert str(world.refusal(call, sender=world.treasury)) == f"NothingForTreasury(token={ETH})"
    assert str(world.refusal(call, sender=world.host)) == f"NotTreasury(caller={world.host})"


OWNED: list[Callable[[World], Call[Any]]] = [
    lambda world: world.marketplace.set_accepted_token(token=world.usdc.address, minimum=1, maximum=2),
    lambda world: world.marketplace.remove_accepted_token(world.usdc.address),
    lambda world: world.marketplace.set_proof_system(world.proofs.address),
    lambda world: world.marketplace.set_treasury(world.stranger),
    lambda world: world.marketplace.set_idle_timeout(60),
    lambda world: world.marketplace.transfer_ownership(world.stranger),
]


@pytest.mark.parametrize("build", OWNED)
def test_the_terms_are_the_owners(world: World, build: Callable[[World], Call[Any]]) -> None:
    for caller in (world.host, world.treasury):
        assert world.refusal(build(world), sender=caller).name == "OwnableUnauthorizedAccount"
    world.send(build(world), sender=world.owner)


ADMIN: list[tuple[str, Callable[[JobMarketplace], Call[Any]]]] = [
    ("ZeroAddress()", lambda market: market.set_accepted_token(token=ETH, minimum=1, maximum=1)),
    ("ZeroAddress()", lambda market: market.remove_accepted_token(ETH)),
    ("ZeroAddress()", lambda market: market.set_treasury(ETH)),
    ("ZeroAddress()", lambda market: market.set_proof_system(ETH)),
    (
        "InvalidDepositLimits(minimum=2, maximum=1)",
        lambda market: market.set_accepted_token(token=f"0x{'11' * 20}", minimum=2, maximum=1),
    ),
    (
        "InvalidDepositLimits(minimum=0, maximum=1)",
        lambda market: market.set_accepted_token(token=f"0x{'11' * 20}", minimum=0, maximum=1),
    ),
    (
        f"TokenNotAccepted(token=0x{'11' * 20})",
        lambda market: market.remove_accepted_token(f"0x{'11' * 20}"),
    ),
    ("IdleTimeoutOutOfRange(seconds_idle=0)", lambda market: market.set_idle_timeout(0)),
    (
        f"IdleTimeoutOutOfRange(seconds_idle={30 * DAY + 1})",
        lambda market: market.set_idle_timeout(30 * DAY + 1),
    ),
]


@pytest.mark.parametrize(("expected", "build"), ADMIN, ids=range(len(ADMIN)))
def test_an_owner_is_refused_unfit_terms(
    world: World, expected: str, build: Callable[[JobMarketplace], Call[Any]]
) -> None:
    assert str(world.refusal(build(world.marketplace), sender=world.owner)) == expected


def test_a_token_no_longer_accepted_still_settles(world: World) -> None:
    job_id = world.open_usdc()
    world.send(world.marketplace.remove_accepted_token(world.usdc.address), sender=world.owner)
    assert world.refusal(world.create_usdc(), sender=world.user).name == "TokenNotAccepted"
    world.pass_time(10)
    world.send(world.claim(job_id, 100), sender=world.host)
    world.send(world.complete(job_id), sender=world.user)
    assert world.balance(world.user, world.usdc.address) == 800_000
