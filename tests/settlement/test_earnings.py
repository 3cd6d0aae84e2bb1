"""Movements of money: booked once, taken back by a reorg, and added up as they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from jobs.models import AppendOnlyError
from settlement import earnings, ledger_rows
from settlement.chain.marketplace import AcceptedClaim, EndedJob, LogPosition, MarketplaceJobStatus
from settlement.models import (
    Earning,
    EarningKind,
    EarningTotal,
    GasCursor,
    Transaction,
    TransactionKind,
    TransactionState,
)
from settlement.models.transaction import TransactionQuerySet
from tests import factories

pytestmark = pytest.mark.django_db

CHAIN = SimpleNamespace(
    key=factories.DEPLOYMENT, host=factories.HOST, deployment=SimpleNamespace(chain_id=factories.CHAIN_ID)
)


def position(*, log_index: int = 0, **fields: Any) -> LogPosition:
    known = {"transaction_hash": factories.new_hash(), "block_number": 7, "block_hash": factories.new_hash()}
    return LogPosition(log_index=log_index, **{**known, **fields})


def claim_at(at: LogPosition, *, host: int = 360_000, treasury: int = 40_000) -> AcceptedClaim:
    return AcceptedClaim(
        job_id=1,
        host=factories.HOST,
        tokens=200,
        proof_hash=factories.new_hash(),
        token=factories.USDC,
        host_amount=host,
        treasury_amount=treasury,
        position=at,
        host_position=replace(at, log_index=at.log_index + 1),
        treasury_position=replace(at, log_index=at.log_index + 2),
    )


def ended_at(at: LogPosition, *, host_amount: int = 0, refund: int = 5, settles: bool = False) -> EndedJob:
    return EndedJob(
        job_id=1,
        status=MarketplaceJobStatus.COMPLETED,
        tokens=200,
        host_amount=host_amount,
        refund=refund,
        settles=settles,
        position=at,
    )


def book(claim: AcceptedClaim, session_id: int) -> None:
    earnings.book_claim(claim, deployment=factories.DEPLOYMENT, session_id=session_id)


def total(kind: EarningKind, *, scope: str = "all", token: str = factories.USDC) -> int:
    row = EarningTotal.objects.filter(scope=scope, kind=kind, token=token).first()
    return 0 if row is None else row.amount


def test_an_event_read_often_is_booked_once() -> None:
    session = factories.make_session()
    claim = claim_at(position())
    for _ in range(3):
        book(claim, session.pk)
    kinds = list(Earning.objects.order_by("id").values_list("kind", "amount"))
    assert kinds == [(EarningKind.HOST, 360_000), (EarningKind.TREASURY, 40_000)]
    assert (total(EarningKind.HOST), total(EarningKind.TREASURY)) == (360_000, 40_000)


def test_an_event_that_says_something_else_is_an_error() -> None:
    session = factories.make_session()
    at = position()
    book(claim_at(at), session.pk)
    with pytest.raises(earnings.BookedDifferently):
        book(claim_at(at, host=360_001), session.pk)
    assert total(EarningKind.HOST) == 360_000


def test_a_reorg_is_taken_back_by_a_row_and_the_event_booked_in_its_new_block() -> None:
    session = factories.make_session()
    at = position()
    book(claim_at(at), session.pk)
    taken = earnings.reverse(transaction_hash=at.transaction_hash, block_hash=at.block_hash)
    assert taken == 2
    assert Earning.objects.count() == 4
    assert total(EarningKind.HOST) == 0
    assert earnings.reverse(transaction_hash=at.transaction_hash, block_hash=at.block_hash) == 0
    elsewhere = replace(at, block_number=9, block_hash=factories.new_hash())
    for _ in range(2):
        book(claim_at(elsewhere), session.pk)
    assert total(EarningKind.HOST) == 360_000
    assert [row.block_hash for row in Earning.objects.live()] == [elsewhere.block_hash] * 2
    assert not list(ledger_rows.totals_add_up())


def test_a_chain_that_goes_back_to_a_block_books_its_event_a_third_time() -> None:
    session = factories.make_session()
    first = position()
    second = replace(first, block_hash=factories.new_hash(), log_index=5)
    for at in (first, second, first):
        book(claim_at(at), session.pk)
    assert total(EarningKind.HOST) == 360_000
    assert {row.block_hash for row in Earning.objects.live()} == {first.block_hash}
    assert Earning.objects.filter(kind=EarningKind.HOST, reverses__isnull=True).count() == 3


def test_the_database_refuses_a_second_standing_row_of_an_event() -> None:
    session = factories.make_session()
    book(claim_at(position()), session.pk)
    row = Earning.objects.get(kind=EarningKind.HOST)
    copy = {
        field: getattr(row, field)
        for field in ("deployment", "session_id", "kind", "token", "amount", "transaction_hash", "log_index")
    }
    with pytest.raises(IntegrityError, match="earning"), transaction.atomic():
        Earning.objects.create(block_number=8, block_hash=factories.new_hash(), **copy)
    assert total(EarningKind.HOST) == 360_000


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.update(amount=1),
        lambda rows: rows.delete(),
        lambda rows: rows.first().save(),
        lambda rows: rows.first().delete(),
        lambda rows: rows.bulk_create([]),
    ],
)
def test_movements_can_neither_be_changed_nor_deleted(change: Callable[[Any], Any]) -> None:
    book(claim_at(position()), factories.make_session().pk)
    with pytest.raises(AppendOnlyError):
        change(Earning.objects.all())
    assert total(EarningKind.HOST) == 360_000


def test_totals_hold_amounts_beyond_what_databases_add() -> None:
    session = factories.make_session(payment_token=factories.NATIVE)
    huge = 2**200 + 1
    for _ in range(3):
        claim = replace(claim_at(position(), host=huge), token=factories.NATIVE)
        book(claim, session.pk)
    assert total(EarningKind.HOST, token=factories.NATIVE) == 3 * huge
    assert total(EarningKind.HOST, token=factories.NATIVE, scope=f"job:{session.pk}") == 3 * huge
    today = f"day:{timezone.now().date().isoformat()}"
    assert total(EarningKind.HOST, token=factories.NATIVE, scope=today) == 3 * huge


def test_a_total_that_another_worker_moved_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    session = factories.make_session()
    book(claim_at(position()), session.pk)
    stale = list(EarningTotal.objects.all())
    book(claim_at(position()), session.pk)
    read = EarningTotal._read
    readings: list[int] = []

    def stale_at_first(sums: Any) -> Any:
        """The first reading is the one before the other worker's."""
        readings.append(len(sums))
        if len(readings) > 1:
            return read(sums)
        return {(row.scope, row.deployment, row.token, row.kind): row for row in stale}

    monkeypatch.setattr(EarningTotal, "_read", stale_at_first)
    claim = claim_at(position())
    earnings.book_claim(replace(claim, treasury_position=None), deployment=factories.DEPLOYMENT, session_id=session.pk)
    assert readings == [3, 3]
    assert total(EarningKind.HOST) == 3 * 360_000
    assert not list(ledger_rows.totals_add_up())


def test_the_end_of_a_job_pays_where_claims_do_not() -> None:
    session = factories.make_session()
    ended = ended_at(position(), host_amount=360_000, settles=True)
    for _ in range(2):
        earnings.book_job_payment(
            ended, token=factories.USDC, deployment=factories.DEPLOYMENT, session_id=session.pk, gross=400_000
        )
        earnings.book_refund(ended, token=factories.USDC, deployment=factories.DEPLOYMENT, session_id=session.pk)
    assert (total(EarningKind.HOST), total(EarningKind.TREASURY), total(EarningKind.REFUND)) == (360_000, 40_000, 5)


def test_the_end_of_a_job_that_was_paid_by_its_claims_pays_nothing() -> None:
    session = factories.make_session()
    earnings.book_job_payment(
        ended_at(position(), host_amount=360_000),
        token=factories.USDC,
        deployment=factories.DEPLOYMENT,
        session_id=session.pk,
        gross=400_000,
    )
    assert not Earning.objects.exists()


def _over(state: TransactionState = TransactionState.FINAL, **fields: Any) -> Transaction:
    return factories.make_transaction(state=state, **fields)


def _grow_old() -> None:
    Transaction.objects.update(created_at=timezone.now() - timedelta(hours=1))


def gas_due(**options: Any) -> int:
    return earnings.book_gas_due(CHAIN, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(TransactionKind))
def test_gas_of_every_kind_of_transaction_is_booked_once(kind: TransactionKind) -> None:
    row = _over(kind=kind)
    assert gas_due() == 1
    assert gas_due() == 0
    booked = Earning.objects.get(kind=EarningKind.GAS)
    assert (booked.amount, booked.token) == (row.receipt.fee, factories.NATIVE)
    assert booked.at == row.receipt.block_time


def test_gas_of_a_reverted_transaction_is_booked_and_of_an_unfinished_one_is_not() -> None:
    _over(TransactionState.REVERTED)
    for state in (TransactionState.QUEUED, TransactionState.SENT, TransactionState.MINED, TransactionState.FAILED):
        factories.make_transaction(state=state)
    assert gas_due() == 1


def test_gas_serves_the_job_of_its_checkpoint_or_of_its_key() -> None:
    session = factories.make_session()
    key = f"complete:{factories.DEPLOYMENT}:{session.job_id}:0"
    _over(key=key, kind=TransactionKind.COMPLETE)
    _over(key=f"withdraw:{factories.DEPLOYMENT}:{session.job_id}", kind=TransactionKind.WITHDRAW)
    gas_due()
    sessions = dict(Earning.objects.order_by("id").values_list("transaction_hash", "session_id"))
    assert list(sessions.values()) == [session.pk, None]


def test_gas_is_found_above_a_transaction_that_is_still_under_way() -> None:
    waiting = factories.make_transaction(state=TransactionState.SENT)
    _over()
    _grow_old()
    assert gas_due() == 1
    assert GasCursor.objects.get().transaction_id == waiting.pk - 1
    _over()
    assert gas_due() == 1
    assert Earning.objects.count() == 2


def test_gas_of_what_is_committed_while_the_cursor_is_reckoned_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _over()
    unfinished = TransactionQuerySet.unfinished
    late: list[Transaction] = []

    def another_process_commits(rows: TransactionQuerySet) -> TransactionQuerySet:
        """The answer of before a transaction that is there from now on."""
        found = list(unfinished(rows).values_list("pk", flat=True))
        if not late:
            late.append(_over())
            Transaction.objects.filter(pk=late[0].pk).update(state=TransactionState.SENT)
            _grow_old()
        return rows.filter(pk__in=found)

    with monkeypatch.context() as patch:
        patch.setattr(TransactionQuerySet, "unfinished", another_process_commits)
        _grow_old()
        assert gas_due() == 1
    assert GasCursor.objects.get().transaction_id < late[0].pk
    Transaction.objects.filter(pk=late[0].pk).update(state=TransactionState.FINAL)
    assert gas_due() == 1
    assert total(EarningKind.GAS, token=factories.NATIVE) == 2 * late[0].receipt.fee


def test_the_gas_cursor_waits_for_rows_that_may_be_committed_below_what_is_seen() -> None:
    seen = _over(pk=1000)
    assert [gas_due(), gas_due()] == [1, 0]
    _over(pk=999)
    assert [gas_due(), gas_due()] == [1, 0]
    _grow_old()
    assert gas_due() == 0
    assert GasCursor.objects.get().transaction_id == seen.pk


def test_gas_taken_back_is_booked_again_below_the_cursor() -> None:
    row = _over()
    _over()
    _grow_old()
    assert gas_due() == 2
    receipt = row.receipt
    assert earnings.reverse(transaction_hash=receipt.attempt.hash, block_hash=receipt.block_hash) == 1
    assert total(EarningKind.GAS, token=factories.NATIVE) == receipt.fee
    receipt.block_hash = factories.new_hash()
    receipt.save()
    assert gas_due() == 1
    assert total(EarningKind.GAS, token=factories.NATIVE) == 2 * receipt.fee


def test_gas_of_other_senders_is_not_ours() -> None:
    _over(sender=factories.DEPOSITOR)
    assert gas_due(from_start=True) == 0
