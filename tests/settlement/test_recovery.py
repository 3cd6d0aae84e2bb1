"""A node that was away, lost rows, or whose chain lost blocks finds out, repairs it, and says what it did."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from jobs import sessions
from jobs.models import Session, SessionState
from settlement import recovery
from settlement.chain import local
from settlement.models import ChainCursor, CheckpointState, EarningKind, JobScan
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

SETTLED = CheckpointState.SETTLED


def _recover(settling: Settling) -> list[str]:
    return recovery.recover(settling.chain, complete=True)


def test_jobs_that_are_active_on_the_chain_and_unknown_here_are_restored_and_ended(settling: Settling) -> None:
    job_ids = [settling.world.open_usdc() for _ in range(3)]
    settling.world.send(settling.world.complete(job_ids[1]), sender=settling.world.user)
    lines = _recover(settling)
    restored = Session.objects.order_by("job_id")
    assert [session.job_id for session in restored] == [job_ids[0], job_ids[2]]
    assert [line.split(",")[0] for line in lines] == [
        f"job {job_ids[0]}: session restored",
        f"job {job_ids[2]}: session restored",
    ]
    assert _recover(settling) == []
    for session in restored:
        sessions.close_session(session.pk, reason="idle")
    settling.settle()
    assert {session.state for session in Session.objects.all()} == {SessionState.COMPLETED}
    assert settling.earned(restored[0], EarningKind.REFUND) == [restored[0].deposit]


def test_a_ledger_that_was_lost_goes_on_where_the_chain_stands(settling: Settling) -> None:
    job_id = settling.world.open_usdc()
    settling.pass_time(2)
    settling.world.send(settling.world.claim(job_id, 120), sender=settling.world.host)
    (line,) = _recover(settling)
    assert "120 tokens claimed by an earlier life of this host" in line
    session = Session.objects.get()
    assert (session.tokens_inherited, session.tokens_claimed, session.tokens_sealed) == (120, 120, 120)
    settling.generate(session, 150)
    settling.settle()
    assert settling.states(session) == [SETTLED]
    assert settling.world.job(job_id).tokens_used == 270


def test_only_jobs_that_are_new_are_asked_about_by_a_scan_that_is_not_complete(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 2)
    monkeypatch.setattr(recovery, "OVERLAP", 1)
    for _ in range(5):
        settling.world.open_usdc()
    assert len(recovery.recover(settling.chain, complete=False)) == 5
    assert JobScan.objects.get().jobs_seen == 5
    starts: list[int] = []
    marketplace = type(settling.chain.marketplace)
    real = marketplace.host_job_ids

    def host_job_ids(self: Any, client: Any, *, host: str, start: int, limit: int) -> list[int]:
        starts.append(start)
        return list(real(self, client, host=host, start=start, limit=limit))

    monkeypatch.setattr(marketplace, "host_job_ids", host_job_ids)
    settling.world.open_usdc()
    assert len(recovery.recover(settling.chain, complete=False)) == 1
    assert starts == [4, 6]


def test_an_end_that_the_cursor_has_passed_is_found_with_its_refund(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 30)
    settling.world.send(settling.world.complete(session.job_id), sender=settling.world.user)
    head = settling.chain.client.head()
    ChainCursor.objects.create(
        deployment=settling.chain.key, block_number=head.number, block_hash="0x" + head.hash.hex()
    )
    lines = _recover(settling)
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]
    assert any("session closed, the job is completed on the chain" in line for line in lines)
    assert _recover(settling) == []


def test_a_lease_of_a_dead_worker_is_given_back(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 120)
    settling.settle(rounds=1)
    session.checkpoints.update(state=CheckpointState.PROVING, retry_at=settling.clock.now())
    (line, *_) = _recover(settling)
    assert line == f"checkpoint 0 of job {session.job_id}: sealed again, the worker that proved it ended"


def test_a_chain_that_lost_settled_blocks_is_settled_again_and_booked_once(settling: Settling) -> None:
    session = settling.open_session()
    settling.index()
    before = local.snapshot(settling.world.url)
    settling.generate(session, 150)
    settling.settle()
    assert settling.states(session) == [SETTLED]
    local.revert(settling.world.url, snapshot_id=before)
    local.increase_time(settling.world.url, seconds=30)
    lines = _recover(settling)
    assert any("taken back" in line for line in lines)
    session.refresh_from_db()
    assert (settling.earned(session, EarningKind.HOST), session.tokens_claimed) == ([], 0)
    settling.settle(rounds=4)
    session.refresh_from_db()
    assert settling.states(session) == [SETTLED]
    assert settling.earned(session, EarningKind.HOST) == [270_000]
    assert session.tokens_claimed == settling.world.job(session.job_id).tokens_used == 150
    assert _recover(settling) == []


def test_a_job_whose_end_a_reorg_took_is_ended_again(settling: Settling) -> None:
    session = settling.open_session()
    settling.index()
    before = local.snapshot(settling.world.url)
    settling.world.send(settling.world.complete(session.job_id), sender=settling.world.user)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    local.revert(settling.world.url, snapshot_id=before)
    local.mine(settling.world.url)
    lines = _recover(settling)
    assert f"job {session.job_id}: to be ended again, a reorg took its end" in lines
    assert settling.earned(session, EarningKind.REFUND) == []
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]
    assert _recover(settling) == []


def test_reconcile_says_what_it_did_and_then_that_there_is_nothing_to_do(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("settlement.management.commands.reconcile.host_chain", lambda: settling.chain)
    job_id = settling.world.open_usdc()
    said = []
    for _ in range(2):
        out = StringIO()
        call_command("reconcile", stdout=out)
        said.append(out.getvalue())
    assert said[0].startswith(f"job {job_id}: session restored, it is active on the chain")
    assert said[1] == "nothing to do\n"
