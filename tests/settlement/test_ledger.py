"""Each invariant of the ledger: a fault makes it fire, with what to do, and its repair clears it."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.models import Session, TokenUsage
from settlement import ledger
from settlement.models import (
    Checkpoint,
    CheckpointEvent,
    CheckpointState,
    Earning,
    EarningKind,
    EarningTotal,
    LedgerCheck,
    Sender,
    TransactionState,
)
from settlement.violations import Violation
from tests import factories

pytestmark = pytest.mark.django_db

Undo = Callable[[], Any]


def violations() -> list[Violation]:
    return list(ledger.verify_database())


def _patch(row: Any, **changes: Any) -> Undo:
    """Change a row as somebody with a database console would; returns how to put it back."""
    table, key = type(row)._base_manager, row.pk
    before = {name: getattr(row, name) for name in changes}
    _raw(table, key, changes)
    return lambda: _raw(table, key, before)


def _raw(table: Any, key: int, values: dict[str, Any]) -> None:
    fields = {table.model._meta.get_field(name): value for name, value in values.items()}
    columns = ", ".join(f"{connection.ops.quote_name(field.column)} = %s" for field in fields)
    parameters = [field.get_db_prep_save(value, connection) for field, value in fields.items()]
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table.model._meta.db_table} SET {columns} WHERE id = %s", [*parameters, key])


def _paid() -> Checkpoint:
    session = factories.make_session()
    factories.add_checkpoint(session, state=CheckpointState.SETTLED)
    return factories.add_checkpoint(session, state=CheckpointState.SETTLED)


def _lost_usage() -> Undo:
    session = _paid().session
    row = TokenUsage.objects.filter(session=session).last()
    assert row is not None
    return _patch(row, count=row.count + 1)


def _torn_usage() -> Undo:
    session = _paid().session
    row = TokenUsage.objects.filter(session=session).last()
    assert row is not None
    return _patch(row, first_index=row.first_index + 1)


def _gap_between_checkpoints() -> Undo:
    row = _paid()
    return _patch(row, from_token=row.from_token + 1)


def _claimed_too_much() -> Undo:
    session = _paid().session
    session.refresh_from_db()
    return _patch(session, tokens_claimed=session.tokens_claimed - 1)


def _credit_that_no_event_states() -> Undo:
    row = _paid()
    return _patch(row, host_amount=(row.host_amount or 0) + 1, gross=(row.gross or 0) + 1)


def _parts_that_are_not_the_whole() -> Undo:
    row = _paid()
    return _patch(row, treasury_amount=(row.treasury_amount or 0) - 1)


def _second_mined_transaction_of_a_nonce() -> Undo:
    first = _paid().transaction
    other = factories.make_transaction(state=TransactionState.MINED)
    assert first is not None
    return _patch(other.receipt.attempt, nonce=first.receipt.attempt.nonce)


def _paid_checkpoint_that_is_claimed_again() -> Undo:
    row = _paid()
    event = CheckpointEvent.objects.filter(checkpoint=row, from_state=CheckpointState.CONFIRMED).last()
    assert event is not None
    before = _patch(event, from_state=CheckpointState.SETTLED, to_state=CheckpointState.RETRY_AT)
    state = _patch(row, state=CheckpointState.RETRY_AT, retry_at=timezone.now() + timedelta(minutes=5))
    claimed = _patch(row.session, tokens_claimed=row.session.tokens_claimed)
    return lambda: (before(), state(), claimed())


def _state_without_a_step() -> Undo:
    return _patch(_paid(), state=CheckpointState.WITHDRAWN)


def _checkpoint_that_nobody_drives() -> Undo:
    row = factories.add_checkpoint(factories.make_session(), state=CheckpointState.PROVED)
    event = row.events.last()
    assert event is not None
    return _patch(event, at=timezone.now() - timedelta(hours=1))


def _transaction_that_nobody_drives() -> Undo:
    row = factories.make_transaction(state=TransactionState.SENT)
    return _patch(row, created_at=timezone.now() - timedelta(hours=1))


def _withdrawal_that_nobody_drives() -> Undo:
    return _patch(factories.make_withdrawal(), created_at=timezone.now() - timedelta(hours=1))


def _total_that_is_not_its_rows() -> Undo:
    _paid()
    total = EarningTotal.objects.filter(scope="all", kind=EarningKind.TREASURY).get()
    return _patch(total, booked=total.booked + 1)


def _rows_without_a_total() -> Undo:
    _paid()
    total = EarningTotal.objects.filter(scope="all", kind=EarningKind.TREASURY).get()
    return _patch(total, scope="elsewhere")


def _transaction_in_two_blocks() -> Undo:
    _paid()
    row = Earning.objects.filter(kind=EarningKind.TREASURY).first()
    assert row is not None
    return _patch(row, block_hash=factories.new_hash())


def _gas_that_was_never_booked() -> Undo:
    receipt = factories.make_transaction().receipt
    return _patch(receipt, block_time=timezone.now() - timedelta(hours=1))


FAULTS: list[tuple[str, Callable[[], Undo]]] = [
    ("I1", _lost_usage),
    ("I1", _torn_usage),
    ("I2", _gap_between_checkpoints),
    ("I2", _claimed_too_much),
    ("I4", _credit_that_no_event_states),
    ("I4", _parts_that_are_not_the_whole),
    ("I5", _second_mined_transaction_of_a_nonce),
    ("I6", _paid_checkpoint_that_is_claimed_again),
    ("I6", _state_without_a_step),
    ("I7", _checkpoint_that_nobody_drives),
    ("I7", _transaction_that_nobody_drives),
    ("I7", _withdrawal_that_nobody_drives),
    ("I8", _total_that_is_not_its_rows),
    ("I8", _rows_without_a_total),
    ("I8", _transaction_in_two_blocks),
    ("I8", _gas_that_was_never_booked),
]


@pytest.mark.parametrize(("invariant", "fault"), FAULTS, ids=[fault.__name__.strip("_") for _, fault in FAULTS])
def test_a_fault_is_found_with_what_to_do_and_its_repair_clears_it(invariant: str, fault: Callable[[], Undo]) -> None:
    repair = fault()
    found = violations()
    assert invariant in {violation.invariant for violation in found}
    assert all(violation.message and violation.remedy for violation in found)
    repair()
    assert violations() == []


def test_a_node_at_work_breaks_no_invariant() -> None:
    factories.make_world(sessions=3)
    assert violations() == []


@pytest.mark.parametrize("state", [CheckpointState.CONFIRMED, CheckpointState.SETTLED, CheckpointState.WITHDRAWN])
def test_the_way_back_of_a_reorg_is_no_violation(state: CheckpointState) -> None:
    row = factories.add_checkpoint(factories.make_session(), state=CheckpointState.SENT)
    CheckpointEvent.objects.create(checkpoint=row, from_state=state, to_state=CheckpointState.REORGED)
    CheckpointEvent.objects.create(checkpoint=row, from_state=CheckpointState.REORGED, to_state=CheckpointState.SENT)
    assert violations() == []


def test_what_waits_for_its_time_or_for_the_operator_is_attended() -> None:
    session = factories.make_session()
    later = timezone.now() + timedelta(minutes=5)
    waiting = factories.add_checkpoint(session, state=CheckpointState.RETRY_AT, retry_at=later)
    held = factories.add_checkpoint(session, state=CheckpointState.PAUSED)
    for row in (waiting, held):
        for event in row.events.all():
            _patch(event, at=timezone.now() - timedelta(days=1))
    assert violations() == []
    _patch(waiting, retry_at=timezone.now() - timedelta(hours=1))
    assert [found.invariant for found in violations()] == ["I7"]


def test_the_transactions_of_a_sender_that_pauses_are_attended() -> None:
    row = factories.make_transaction(state=TransactionState.QUEUED)
    _patch(row, created_at=timezone.now() - timedelta(hours=1))
    assert [found.invariant for found in violations()] == ["I7"]
    Sender.objects.create(
        chain_id=row.chain_id,
        address=row.sender,
        paused_until=timezone.now() + timedelta(minutes=1),
        paused_reason="the day's gas is spent",
    )
    assert violations() == []


def test_rebuilt_totals_are_the_sums_of_the_rows() -> None:
    factories.make_world(sessions=2)
    before = list(EarningTotal.objects.values_list("scope", "token", "kind", "booked", "taken_back", "rows"))
    _raw(EarningTotal._base_manager, EarningTotal.objects.earliest("pk").pk, {"booked": 1})
    assert {found.invariant for found in violations()} >= {"I8"}
    out = io.StringIO()
    call_command("verify_ledger", database_only=True, rebuild_totals=True, stdout=out)
    assert "0 violations" in out.getvalue()
    after = list(EarningTotal.objects.values_list("scope", "token", "kind", "booked", "taken_back", "rows"))
    assert after == before


def test_the_exit_code_is_the_number_of_violations_and_never_wraps() -> None:
    _lost_usage()
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify_ledger", database_only=True, stdout=out)
    assert ended.value.code == 1
    assert "1 violations" in out.getvalue()
    assert "→" in out.getvalue()
    Session.objects.bulk_create([Session(last_activity_at=timezone.now(), tokens_tracked=1) for _ in range(300)])
    with pytest.raises(SystemExit) as ended:
        call_command("verify_ledger", database_only=True, stdout=io.StringIO())
    assert ended.value.code == 250


def test_a_check_is_kept_for_the_front_page_and_cleared_by_the_next(admin_client: Client) -> None:
    repair = _total_that_is_not_its_rows()
    assert ledger.check_database() == 1
    assert ledger.mismatches() == {name: int(name == "I8") for name in ("I1", "I2", "I4", "I5", "I6", "I7", "I8")}
    page = admin_client.get(reverse("admin:index")).content.decode()
    assert "1 violation in the database" in page
    assert "add up" in page
    repair()
    assert ledger.check_database() == 0
    assert set(ledger.mismatches().values()) == {0}
    assert LedgerCheck.objects.count() == 1
    assert "0 violations in the database" in admin_client.get(reverse("admin:index")).content.decode()


def test_many_rows_need_no_more_queries() -> None:
    factories.make_world()
    with CaptureQueriesContext(connection) as few:
        assert violations() == []
    for _ in range(5):
        factories.make_settled_session()
    with CaptureQueriesContext(connection) as many:
        assert violations() == []
    assert len(many) == len(few)


def test_every_rule_of_the_database_is_one_of_the_checks() -> None:
    assert {invariant for invariant, _ in FAULTS} == set(ledger._CHECKED[ledger.DATABASE])
