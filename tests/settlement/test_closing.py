"""The end of a job: who may end it and when, what it pays, and what is written down as lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import sessions
from jobs.models import Session, SessionState
from settlement import checkpoints, closing
from settlement.chain.marketplace import AcceptedClaim, EndedJob
from settlement.models import (
    CheckpointState,
    Closing,
    EarningKind,
    Transaction,
    TransactionKind,
    TransactionState,
)
from tests.settlement.conftest import Settling

SETTLED, CONFIRMED, FAILED = CheckpointState.SETTLED, CheckpointState.CONFIRMED, CheckpointState.FAILED


class PaysAtEnd:
    """The real marketplace, seen as one that pays when the job ends and has no closing claim."""

    def __init__(self, real: Any, *, floor: int = 0) -> None:
        self._real = real
        self._floor = floor
        self.capabilities = replace(real.capabilities, pays_on_claim=False, closing_claim=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def accepted_claims(self, logs: Any) -> list[AcceptedClaim]:
        unpaid = {"host_amount": 0, "treasury_amount": 0, "host_position": None, "treasury_position": None}
        return [replace(claim, **unpaid) for claim in self._real.accepted_claims(logs)]

    def ended_jobs(self, logs: Any) -> list[EndedJob]:
        return [
            replace(
                ended,
                settles=True,
                host_amount=ended.host_amount or self._floor,
                refund=ended.refund if ended.host_amount else ended.refund - self._floor,
            )
            for ended in self._real.ended_jobs(logs)
        ]


def _paid_at_end(settling: Settling, **terms: int) -> Settling:
    marketplace: Any = PaysAtEnd(settling.chain.marketplace, **terms)
    return replace(settling, chain=replace(settling.chain, marketplace=marketplace))


def _closing(session: Session) -> Closing:
    return Closing.objects.get(session=session)


@pytest.mark.django_db
def test_where_the_end_of_the_job_pays_claims_are_confirmed_first_and_settled_then(settling: Settling) -> None:
    late = _paid_at_end(settling)
    session = late.open_session()
    for tokens in (130, 120):
        late.generate(session, tokens)
        late.settle(rounds=1)
    assert late.states(session) == [CONFIRMED] * 2
    assert [row.host_amount for row in late.checkpoints(session)] == [None] * 2
    assert late.earned(session, EarningKind.HOST) == []
    late.generate(session, 60)
    sessions.close_session(session.pk, reason="idle")
    late.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert late.states(session) == [SETTLED] * 2
    amounts = [(row.gross, row.host_amount, row.treasury_amount) for row in late.checkpoints(session)]
    assert amounts == [(260_000, 234_000, 26_000), (240_000, 216_000, 24_000)]
    assert late.earned(session, EarningKind.HOST) == [450_000]
    assert late.earned(session, EarningKind.TREASURY) == [50_000]
    assert late.earned(session, EarningKind.REFUND) == [session.deposit - 500_000]


@pytest.mark.django_db
def test_a_rest_below_the_minimum_is_written_down_as_unclaimable_and_never_padded(
    settling: Settling, caplog: pytest.LogCaptureFixture
) -> None:
    late = _paid_at_end(settling)
    session = late.open_session()
    late.generate(session, 160)
    late.settle(rounds=1)
    late.generate(session, 99)
    sessions.close_session(session.pk, reason="idle")
    late.settle()
    session.refresh_from_db()
    found = _closing(session)
    assert session.state == SessionState.COMPLETED
    assert (found.tokens_unclaimable, found.unclaimable_reason) == (
        99,
        "below the marketplace's minimum of 100 tokens for a claim",
    )
    assert late.world.job(session.job_id).tokens_used == 160
    assert [record.levelname for record in caplog.records if getattr(record, "event", "") == "tokens_unclaimable"] == [
        "WARNING"
    ]


@pytest.mark.django_db
def test_a_host_that_is_paid_a_least_fee_though_nothing_was_claimed_books_it(settling: Settling) -> None:
    late = _paid_at_end(settling, floor=7_000)
    session = late.open_session()
    late.world.send(late.world.complete(session.job_id), sender=late.world.user)
    late.settle()
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert late.earned(session, EarningKind.HOST) == [7_000]
    assert late.earned(session, EarningKind.REFUND) == [session.deposit - 7_000]
    assert late.states(session) == []


@pytest.mark.django_db
def test_a_job_paid_at_its_end_by_the_depositor_settles_what_was_claimed_by_then(settling: Settling) -> None:
    late = _paid_at_end(settling)
    session = late.open_session()
    late.generate(session, 130)
    late.settle(rounds=1)
    late.generate(session, 140)
    late.pass_time(2)
    late.prepare_claims()
    late.world.send(late.world.complete(session.job_id), sender=late.world.user)
    late.settle()
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert late.states(session) == [SETTLED, FAILED]
    assert late.checkpoints(session)[0].host_amount == 234_000
    found = _closing(session)
    assert found.tokens_unclaimable == 140
    assert "before they were claimed" in found.unclaimable_reason


@given(
    tokens=st.lists(st.integers(1, 10**6), min_size=1, max_size=12),
    price=st.integers(1, 10**12),
    precision=st.sampled_from([1, 1000]),
    fee=st.integers(0, 10_000),
    floor=st.integers(0, 10**6),
)
def test_the_parts_of_a_job_add_up_to_what_it_was_paid(
    tokens: list[int], price: int, precision: int, fee: int, floor: int
) -> None:
    session = Session(price_per_token=price, price_precision=precision)
    gross = max(session.worth(sum(tokens)), floor)
    host = gross - gross * fee // 10_000
    parts = checkpoints.parts_of_job(session, tokens, gross=gross, host_amount=host)
    assert sum(part for part, _ in parts) == gross
    assert sum(part for _, part in parts) == host
    assert all(0 <= mine <= part for part, mine in parts)
    if gross == session.worth(sum(tokens)):
        exact = [count * price / precision for count in tokens]
        assert all(abs(part - due) <= 1 + due / 10**9 for (part, _), due in zip(parts, exact, strict=True))
    assert checkpoints.parts_of_job(session, [], gross=gross, host_amount=host) == []


@pytest.mark.django_db
def test_completion_waits_for_the_dispute_window_without_asking_again_and_again(
    settling_on: Callable[..., Settling], monkeypatch: pytest.MonkeyPatch
) -> None:
    settling = settling_on(dispute_window=300)
    session = settling.open_session()
    sessions.close_session(session.pk, reason="idle")
    settling.close_sessions()
    assert "dispute window" in _closing(session).reason
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(settling.chain.marketplace, "find_jobs", lambda client, ids: asked.extend(ids) or [])
        for _ in range(5):
            assert closing.close_due(settling.chain) == 0
    assert asked == []
    settling.pass_time(301)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert [row.state for row in Transaction.objects.all()] == [TransactionState.FINAL]


@pytest.mark.django_db
def test_what_is_large_enough_is_claimed_while_only_the_depositor_may_end_the_job(
    settling_on: Callable[..., Settling],
) -> None:
    settling = settling_on(dispute_window=300)
    session = settling.open_session()
    settling.generate(session, 150)
    sessions.close_session(session.pk, reason="client disconnected")
    settling.settle(rounds=1)
    assert settling.states(session) == [SETTLED]
    settling.pass_time(301)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    kinds = Transaction.objects.order_by("id").values_list("kind", flat=True)
    assert list(kinds) == [TransactionKind.CLAIM, TransactionKind.COMPLETE]


@pytest.mark.django_db
def test_a_completion_that_is_refused_is_tried_again_later_with_its_reason(settling: Settling) -> None:
    session = settling.open_session()
    sessions.close_session(session.pk, reason="idle")
    settling.close_sessions()
    Transaction.objects.update(state=TransactionState.FAILED, revert="NotParticipant", reason="NotParticipant(0x12)")
    settling.close_sessions()
    found = _closing(session)
    assert (found.tries, found.transaction) == (1, None)
    assert "NotParticipant(0x12)" in found.reason
    settling.pass_time(30)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert Transaction.objects.count() == 2


@pytest.mark.django_db
def test_a_job_that_ran_out_and_cannot_be_completed_is_timed_out(settling: Settling) -> None:
    session = settling.open_session(max_duration=3600)
    sessions.close_session(session.pk, reason="idle")
    settling.close_sessions()
    Transaction.objects.update(state=TransactionState.FAILED, revert="NotParticipant", reason="NotParticipant(0x12)")
    settling.pass_time(3 * 3600)
    settling.close_sessions()
    settling.pass_time(60)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    kinds = Transaction.objects.order_by("id").values_list("kind", "state")
    assert list(kinds) == [("complete", "failed"), ("timeout", "final")]
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]


@pytest.mark.django_db
def test_a_session_with_a_claim_that_failed_waits_for_its_operator_until_the_job_runs_out(settling: Settling) -> None:
    session = settling.open_session(max_duration=3600)
    settling.generate(session, 150)
    settling.pass_time(2)
    settling.prepare_claims()
    checkpoints.fail(session.checkpoints.get(), reason="by hand")
    sessions.close_session(session.pk, reason="idle")
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.CLOSING
    assert "by hand" in _closing(session).reason
    settling.pass_time(3 * 3600)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    found = _closing(session)
    assert found.tokens_unclaimable == 150
    assert "by hand" in found.unclaimable_reason


@pytest.mark.django_db
def test_a_job_near_its_idle_time_out_is_claimed_and_ended_before_anybody_can_time_it_out(settling: Settling) -> None:
    session = settling.open_session(max_duration=24 * 3600)
    settling.generate(session, 60)
    assert session.idle_timeout_seconds is not None
    settling.pass_time(session.idle_timeout_seconds - 30)
    never = timedelta(days=365)
    assert sessions.close_due_sessions(now=settling.clock.now(), grace=never, idle=never) == [session.pk]
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert settling.states(session) == [SETTLED]
    assert settling.world.job(session.job_id).tokens_used == 60
