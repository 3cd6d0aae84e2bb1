"""The rules about time: how fast a host may claim, when it may complete, when a session times out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from settlement.chain import local
from settlement.chain.bindings import events
from settlement.chain.bindings.structs import SessionStatus
from tests.chain.world import World, build_world

WINDOW = 300


@pytest.fixture(scope="module", params=[10, 1000])
def paced_world(anvil_url: str, request: pytest.FixtureRequest) -> Iterator[World]:
    before = local.snapshot(anvil_url)
    yield build_world(anvil_url, expected_tokens_per_second=request.param, dispute_window=WINDOW, idle_timeout=600)
    local.revert(anvil_url, snapshot_id=before)


@pytest.fixture
def paced(paced_world: World) -> Iterator[World]:
    before = local.snapshot(paced_world.url)
    yield paced_world
    local.revert(paced_world.url, snapshot_id=before)


@pytest.mark.parametrize("seconds", [10, 61])
def test_a_claim_may_cover_twice_the_expected_rate(paced: World, seconds: int) -> None:
    allowed = 2 * paced.read(paced.marketplace.expected_tokens_per_second()) * seconds
    job_id = paced.open_eth(deposit=10**18, price=10**10)
    now = paced.job(job_id).start_time + seconds
    refused = paced.refusal(paced.claim(job_id, allowed + 1), sender=paced.host, at=now)
    assert str(refused) == f"ClaimTooFast(claimed={allowed + 1}, allowed={allowed})"
    receipt = paced.send_at(paced.claim(job_id, allowed), sender=paced.host, timestamp=now)
    assert receipt["status"] == 1
    assert paced.job(job_id).tokens_used == allowed


def test_the_rate_counts_from_the_last_claim(paced: World) -> None:
    rate = paced.read(paced.marketplace.expected_tokens_per_second())
    job_id = paced.open_eth(deposit=10**18, price=10**10)
    last = paced.job(job_id).start_time + 100
    paced.send_at(paced.claim(job_id, 100), sender=paced.host, timestamp=last)
    assert paced.job(job_id).last_proof_time == last
    for call in (paced.claim(job_id, 100 * rate + 1), paced.close(job_id, 100 * rate + 1)):
        refused = paced.refusal(call, sender=paced.host, at=last + 50)
        assert str(refused) == f"ClaimTooFast(claimed={100 * rate + 1}, allowed={100 * rate})"


def test_in_the_second_of_its_creation_a_session_pays_nothing(paced: World) -> None:
    job_id = paced.open_eth()
    call = paced.claim(job_id, 100)
    refused = paced.refusal(call, sender=paced.host, at=paced.job(job_id).start_time)
    assert str(refused) == "ClaimTooFast(claimed=100, allowed=0)"


def test_a_host_waits_for_the_dispute_window_and_a_depositor_does_not(paced: World) -> None:
    first, second = paced.open_eth(), paced.open_eth()
    until = paced.job(first).start_time + WINDOW
    for call in (paced.complete(first), paced.close(first, 1)):
        refused = paced.refusal(call, sender=paced.host, at=until - 1)
        assert str(refused) == f"DisputeWindowOpen(until={until})"
    paced.send(paced.complete(second), sender=paced.user)
    assert paced.job(second).status is SessionStatus.COMPLETED
    assert paced.send_at(paced.close(first, 1), sender=paced.host, timestamp=until)["status"] == 1
    assert paced.job(first).status is SessionStatus.COMPLETED


@pytest.mark.parametrize(("max_duration", "lives_for"), [(86400, 600), (500, 500)])
def test_a_session_times_out_by_idleness_or_age(paced: World, max_duration: int, lives_for: int) -> None:
    job_id = paced.open_usdc(max_duration=max_duration)
    deadline = paced.job(job_id).start_time + lives_for
    assert paced.read(paced.marketplace.session_deadline(job_id)) == deadline
    timeout = paced.marketplace.trigger_session_timeout(job_id)
    refused = paced.refusal(timeout, sender=paced.stranger, at=deadline)
    assert str(refused) == f"SessionNotTimedOut(job_id={job_id}, deadline={deadline})"
    receipt = paced.send_at(timeout, sender=paced.stranger, timestamp=deadline + 1)
    assert paced.events(receipt, events.SessionTimedOut) == [events.SessionTimedOut(job_id, 0, 0, 1_000_000)]
    assert paced.job(job_id).status is SessionStatus.TIMED_OUT
    assert paced.balance(paced.user, paced.usdc.address) == 1_000_000


def test_a_claim_puts_off_the_idle_timeout_and_stays_paid_after_it(paced: World) -> None:
    job_id = paced.open_usdc()
    last = paced.job(job_id).start_time + 590
    paced.send_at(paced.claim(job_id, 100), sender=paced.host, timestamp=last)
    assert paced.read(paced.marketplace.session_deadline(job_id)) == last + 600
    timeout = paced.marketplace.trigger_session_timeout(job_id)
    receipt = paced.send_at(timeout, sender=paced.stranger, timestamp=last + 601)
    assert paced.events(receipt, events.SessionTimedOut) == [events.SessionTimedOut(job_id, 100, 180_000, 800_000)]
    assert paced.read(paced.earnings.get_balance(host=paced.host, token=paced.usdc.address)) == 180_000


def test_a_host_may_claim_past_the_deadline_until_somebody_ends_the_session(paced: World) -> None:
    job_id = paced.open_usdc(max_duration=100)
    later = paced.job(job_id).start_time + 1000
    paced.send_at(paced.claim(job_id, 100), sender=paced.host, timestamp=later)
    assert paced.job(job_id).tokens_used == 100


def test_a_new_idle_timeout_is_for_new_sessions(paced: World) -> None:
    old = paced.open_eth()
    paced.send(paced.marketplace.set_idle_timeout(60), sender=paced.owner)
    new = paced.open_eth()
    assert (paced.job(old).idle_timeout, paced.job(new).idle_timeout) == (600, 60)
