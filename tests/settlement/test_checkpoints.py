"""Checkpoints tile what was counted; of two workers one takes a step; the database refuses the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models import ProtectedError
from django.utils import timezone

from jobs import metering
from jobs.models import AppendOnlyError, DeliveryPath, InferenceRequest, Session, SessionState, TokenUsage
from settlement import checkpoints
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState, Transaction

pytestmark = pytest.mark.django_db

SEALED, PROVING, PROVED = CheckpointState.SEALED, CheckpointState.PROVING, CheckpointState.PROVED


def _session(tokens: int = 1000, *, budget: int = 10_000) -> Session:
    session = Session.objects.create(
        deployment="31337:0xab",
        job_id=Session.objects.count() + 1,
        token_budget=budget,
        last_activity_at=timezone.now(),
    )
    request = InferenceRequest.objects.create(
        session=session, path=DeliveryPath.HTTP_JSON, model="tiny", max_tokens=tokens
    )
    if tokens:
        metering.record_usage(session_id=session.pk, request_id=request.pk, count=tokens, path=request.path)
    return Session.objects.get(pk=session.pk)


def _seal(session: Session, tokens: int, *, closing: bool = False) -> Checkpoint:
    session.refresh_from_db()
    checkpoint = checkpoints.seal(session, tokens=tokens, closing=closing)
    assert checkpoint is not None
    return checkpoint


def _transaction(key: str) -> Transaction:
    return Transaction.objects.create(
        key=key, kind="claim", chain_id=1, sender="0x" + "1" * 40, to="0x" + "2" * 40, data="0x"
    )


def _race(*workers: Callable[[], Any]) -> list[Any]:
    """Run all at once, each with a database connection of its own."""
    gate = threading.Barrier(len(workers))
    results: list[Any] = []

    def run(worker: Callable[[], Any]) -> None:
        try:
            gate.wait()
            results.append(worker())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.django_db(transaction=True)
def test_of_two_workers_that_seal_the_same_tokens_one_wins() -> None:
    session = _session(300)
    copies = [Session.objects.get(pk=session.pk) for _ in range(4)]
    results = _race(*[lambda copy=copy: checkpoints.seal(copy, tokens=120, closing=False) for copy in copies])
    assert sum(result is not None for result in results) == 1
    session.refresh_from_db()
    assert (session.tokens_sealed, session.checkpoint_count, Checkpoint.objects.count()) == (120, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_of_many_workers_that_move_one_checkpoint_one_wins() -> None:
    checkpoint = _seal(_session(), 100)
    move = lambda: checkpoints.move(checkpoint.pk, from_state=SEALED, to_state=PROVING)  # noqa: E731
    assert sorted(_race(*[move] * 6)) == [False] * 5 + [True]
    assert CheckpointEvent.objects.filter(to_state=PROVING).count() == 1


@pytest.mark.django_db(transaction=True)
def test_tokens_counted_by_many_requests_at_once_tile_the_session() -> None:
    session = _session(0, budget=1000)
    request = InferenceRequest.objects.get(session=session)
    record = lambda: [  # noqa: E731
        metering.record_usage(session_id=session.pk, request_id=request.pk, count=7, path=request.path)
        for _ in range(5)
    ]
    _race(*[record] * 4)
    session.refresh_from_db()
    assert session.tokens_tracked == 140
    rows = TokenUsage.objects.filter(session=session).order_by("first_index")
    assert [row.first_index for row in rows] == list(range(0, 140, 7))


def test_ranges_tile_what_was_counted() -> None:
    session = _session(1000)
    for tokens in (100, 333, 1, 566):
        _seal(session, tokens)
    rows = list(Checkpoint.objects.order_by("index"))
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert [(row.from_token, row.to_token) for row in rows] == [(0, 100), (100, 433), (433, 434), (434, 1000)]
    assert sum(row.tokens for row in rows) == session.tokens_tracked


def test_no_more_is_sealed_than_was_counted() -> None:
    session = _session(150)
    assert checkpoints.seal(session, tokens=151, closing=False) is None
    assert not Checkpoint.objects.exists()


def test_each_step_is_recorded_with_its_reason() -> None:
    checkpoint = _seal(_session(), 100, closing=True)
    assert checkpoints.move(checkpoint.pk, from_state=SEALED, to_state=PROVING)
    checkpoint.refresh_from_db()
    assert checkpoints.wait(checkpoint, until=timezone.now(), reason="later")
    checkpoint.refresh_from_db()
    assert checkpoint.retries == 1
    assert checkpoints.fail(checkpoint, reason="r" * 600)
    steps = list(checkpoint.events.values_list("from_state", "to_state"))
    assert steps == [("", "sealed"), ("sealed", "proving"), ("proving", "retry_at"), ("retry_at", "failed")]
    assert checkpoint.events.first().reason == "closing claim"
    assert len(checkpoint.events.last().reason) == 500


def test_a_step_from_a_state_that_has_passed_changes_and_records_nothing() -> None:
    checkpoint = _seal(_session(), 100)
    assert not checkpoints.move(checkpoint.pk, from_state=PROVED, to_state=CheckpointState.FAILED)
    accepted = checkpoints.Acceptance(
        checkpoint=checkpoint, claimed_at=timezone.now(), host_amount=9, treasury_amount=1
    )
    assert checkpoints.confirm_all([accepted]) == set()
    assert Checkpoint.objects.get().state == SEALED
    assert Session.objects.get().tokens_claimed == 0
    assert checkpoint.events.count() == 1


def _accepted(checkpoint: Checkpoint) -> checkpoints.Acceptance:
    return checkpoints.Acceptance(checkpoint=checkpoint, claimed_at=timezone.now(), host_amount=9, treasury_amount=1)


_SENT, _MINED = CheckpointState.SENT, CheckpointState.MINED
_STEPS: dict[str, tuple[CheckpointState, Callable[[Checkpoint], Any]]] = {
    "wait": (_SENT, lambda row: checkpoints.wait(row, until=timezone.now(), reason="refused")),
    "fail": (_SENT, lambda row: checkpoints.fail(row, reason="refused")),
    "hold": (_SENT, lambda row: checkpoints.hold(row, reason="cancelled")),
    "mine": (_SENT, lambda row: checkpoints.mine(row, block_time=timezone.now())),
    "mine_all": (_SENT, lambda row: checkpoints.mine_all([(row, timezone.now())])),
    "confirm_all": (_MINED, lambda row: checkpoints.confirm_all([_accepted(row)])),
    "take_back": (_MINED, lambda row: checkpoints.take_back(row, reason="block gone")),
}


@pytest.mark.parametrize("name", _STEPS)
def test_what_became_of_an_older_transaction_moves_no_newer_try(name: str) -> None:
    state, step = _STEPS[name]
    checkpoint = _seal(_session(), 100)
    rows = Checkpoint.objects.filter(pk=checkpoint.pk)
    rows.update(state=state, transaction=_transaction("one"))
    late = rows.get()
    rows.update(transaction=_transaction("two"))
    assert not step(late)
    assert (rows.get().state, checkpoint.events.count(), Session.objects.get().last_claim_at) == (state, 1, None)
    assert step(rows.get())
    assert rows.get().state != state


def _usage() -> TokenUsage:
    _session(10)
    return TokenUsage.objects.get()


def _event() -> CheckpointEvent:
    return _seal(_session(), 100).events.get()


@pytest.mark.parametrize("make", [_usage, _event])
def test_ledger_rows_can_neither_be_changed_nor_deleted(make: Callable[[], Any]) -> None:
    row = make()
    for change in (
        row.save,
        row.delete,
        type(row).objects.all().delete,
        lambda: type(row).objects.update(pk=row.pk),
        lambda: type(row).objects.bulk_update([row], ["session" if make is _usage else "reason"]),
    ):
        with pytest.raises(AppendOnlyError, match="append-only"), transaction.atomic():
            change()
    assert type(row).objects.count() == 1


_PAID = {"state": CheckpointState.CONFIRMED}
_CREDITED = {"state": CheckpointState.SETTLED, "confirmed_at": timezone.now()}


@pytest.mark.parametrize(
    ("constraint", "change"),
    [
        ("checkpoint_holds_tokens", {"to_token": 100}),
        ("checkpoint_holds_tokens", {"to_token": 50}),
        ("one_checkpoint_per_start", {"from_token": 0}),
        ("one_checkpoint_per_end", {"from_token": 50, "to_token": 100}),
        ("one_checkpoint_per_index", {"index": 0}),
        ("checkpoint_starts_at_a_token", {"from_token": -1}),
        ("a_queued_checkpoint_has_a_transaction", {"state": CheckpointState.QUEUED}),
        ("a_queued_checkpoint_has_a_transaction", {"state": CheckpointState.SENT}),
        ("a_queued_checkpoint_has_a_transaction", {"state": CheckpointState.MINED}),
        ("a_paid_checkpoint_has_its_event", _PAID),
        ("a_paid_checkpoint_has_its_event", _PAID | {"host_amount": 1, "treasury_amount": 1}),
        ("a_credited_checkpoint_has_its_amounts", _CREDITED),
        ("a_credited_checkpoint_has_its_amounts", _CREDITED | {"gross": 10, "host_amount": 9}),
        ("a_proof_serves_one_checkpoint", {"proof_hash": "0x" + "1" * 64}),
    ],
)
def test_the_database_refuses_a_checkpoint_that_cannot_be(constraint: str, change: dict[str, Any]) -> None:
    session = _session()
    first, second = _seal(session, 100), _seal(session, 100)
    Checkpoint.objects.filter(pk=first.pk).update(proof_hash="0x" + "1" * 64)
    if constraint == "a_credited_checkpoint_has_its_amounts":
        change = change | {"transaction": _transaction("one")}
    with pytest.raises(IntegrityError), transaction.atomic():
        Checkpoint.objects.filter(pk=second.pk).update(**change)
    assert constraint in {item.name for item in Checkpoint._meta.constraints}
    second.refresh_from_db()
    assert (second.from_token, second.to_token, second.state) == (100, 200, SEALED)


@pytest.mark.parametrize(
    ("constraint", "change"),
    [
        ("claimed_at_most_what_is_sealed", {"tokens_claimed": 101}),
        ("claimed_is_not_negative", {"tokens_claimed": -1}),
        ("sealed_at_most_what_is_tracked", {"tokens_sealed": 1001}),
        ("tracked_at_most_what_the_deposit_pays", {"tokens_tracked": 10_001}),
        ("a_job_has_a_budget", {"token_budget": None}),
    ],
)
def test_the_database_refuses_a_session_that_cannot_be(constraint: str, change: dict[str, Any]) -> None:
    session = _session()
    _seal(session, 100)
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Session.objects.filter(pk=session.pk).update(**change)


def test_a_job_has_one_session_for_each_deployment() -> None:
    session = _session()
    fields = {"job_id": session.job_id, "token_budget": 1, "last_activity_at": timezone.now()}
    Session.objects.create(deployment="1:0xcd", **fields)
    with pytest.raises(IntegrityError), transaction.atomic():
        Session.objects.create(deployment=session.deployment, **fields)


def test_a_transaction_serves_one_checkpoint() -> None:
    session = _session()
    first, second = _seal(session, 100), _seal(session, 100)
    row = _transaction("one")
    Checkpoint.objects.filter(pk=first.pk).update(transaction=row, state=CheckpointState.QUEUED)
    with pytest.raises(IntegrityError), transaction.atomic():
        Checkpoint.objects.filter(pk=second.pk).update(transaction=row, state=CheckpointState.QUEUED)


def test_rows_with_a_past_are_not_deleted_by_accident() -> None:
    session = _session()
    _seal(session, 100)
    with pytest.raises(ProtectedError):
        session.delete()
    assert Session.objects.get().state == SessionState.OPEN
