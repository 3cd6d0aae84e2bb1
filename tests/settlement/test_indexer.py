"""Events of final blocks, applied once and never skipped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs import sessions
from jobs.models import SessionState
from settlement import indexer
from settlement.chain import local
from settlement.chain.client import ChainUnavailable
from settlement.models import ChainCursor, Earning, EarningKind
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db


def _completed(settling: Settling) -> tuple[int, int]:
    """A session whose depositor completed the job: its row id and the refund."""
    session = settling.open_session()
    settling.world.send(settling.world.complete(session.job_id), sender=settling.world.user)
    return session.pk, session.deposit


def test_the_cursor_follows_the_final_head_and_repeats_nothing(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = type(settling.chain.client).logs

    def logs(client, *, addresses, from_block, to_block):
        asked.append((from_block, to_block))
        return real(client, addresses=addresses, from_block=from_block, to_block=to_block)

    monkeypatch.setattr(type(settling.chain.client), "logs", logs)
    head = settling.chain.client.head().number
    assert settling.index() == head
    assert ChainCursor.objects.get().block_number == head
    local.mine(settling.world.url, blocks=2)
    assert settling.index() == head + 2
    first = settling.chain.deployment.deployed_at_block
    assert asked == [(first, head), (head + 1, head + 2)]


def test_long_ranges_are_read_in_parts(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "LOG_RANGE_BLOCKS", 3)
    session_id, refund = _completed(settling)
    local.mine(settling.world.url, blocks=7)
    assert settling.index() == settling.chain.client.head().number
    assert settling.index() == settling.chain.client.head().number
    assert [row.amount for row in Earning.objects.filter(session_id=session_id)] == [refund]


def test_a_refund_is_booked_once_however_often_its_block_is_read(settling: Settling) -> None:
    session_id, refund = _completed(settling)
    for _ in range(3):
        settling.index()
        ChainCursor.objects.all().delete()
    rows = Earning.objects.filter(session_id=session_id, kind=EarningKind.REFUND)
    assert [row.amount for row in rows] == [refund]


def test_blocks_that_are_not_final_are_not_read(settling: Settling) -> None:
    deep = settling.with_confirmations(4)
    _completed(deep)
    head = deep.chain.client.head().number
    assert deep.index() == head - 3
    assert not Earning.objects.exists()
    local.mine(deep.world.url, blocks=3)
    assert deep.index() == head
    assert Earning.objects.count() == 1


def test_a_cursor_on_a_block_that_is_gone_starts_over(settling: Settling) -> None:
    session_id, refund = _completed(settling)
    settling.index()
    local.mine(settling.world.url, blocks=3)
    settling.index()
    local.reorganise(settling.world.url, depth=2)
    local.mine(settling.world.url, blocks=1)
    assert settling.index() == settling.chain.client.head().number
    cursor = ChainCursor.objects.get()
    block = settling.chain.client.block(cursor.block_number)
    assert block is not None
    assert cursor.block_hash == "0x" + block.hash.hex()
    assert [row.amount for row in Earning.objects.filter(session_id=session_id)] == [refund]


def test_a_cursor_above_a_chain_that_lost_blocks_starts_over(settling: Settling) -> None:
    before = local.snapshot(settling.world.url)
    local.mine(settling.world.url, blocks=5)
    settling.index()
    local.revert(settling.world.url, snapshot_id=before)
    assert settling.index() == settling.chain.client.head().number


def test_a_failure_in_the_middle_repeats_the_range_and_skips_none(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    _completed(settling)

    def fail(*args, **kwargs):
        raise ChainUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(indexer, "apply_ended_job", fail)
        with pytest.raises(ChainUnavailable):
            settling.index()
    assert not ChainCursor.objects.exists()
    settling.index()
    assert Earning.objects.filter(kind=EarningKind.REFUND).count() == 1


@pytest.mark.parametrize("confirmations", [1, 3])
def test_a_deployment_of_unknown_age_is_followed_from_now_on(settling: Settling, confirmations: int) -> None:
    deployment = replace(settling.chain.deployment, deployed_at_block=None)
    deep = replace(settling, chain=replace(settling.with_confirmations(confirmations).chain, deployment=deployment))
    local.mine(deep.world.url, blocks=5)
    deep.index()
    _completed(deep)
    local.mine(deep.world.url, blocks=3)
    deep.index()
    assert Earning.objects.filter(kind=EarningKind.REFUND).count() == 1


def test_jobs_of_other_hosts_and_deployments_are_passed_over(settling: Settling) -> None:
    job_id = settling.world.open_usdc()
    settling.world.send(settling.world.complete(job_id), sender=settling.world.user)
    settling.index()
    assert not Earning.objects.exists()


def test_a_job_that_timed_out_ends_the_session_with_its_refund(settling: Settling) -> None:
    session = settling.open_session(max_duration=3600)
    settling.generate(session, 30)
    settling.pass_time(3 * 3600)
    world = settling.world
    world.send(world.marketplace.trigger_session_timeout(session.job_id), sender=world.stranger)
    settling.index()
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert "timed_out" in session.close_reason
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]
    assert session.tokens_tracked - session.tokens_claimed == 30
    assert not sessions.close_session(session.pk, reason="again")
