"""What a step reads does not grow with all that was ever booked: work counted in SQLite's own instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.db import connection
from django.utils import timezone

from settlement import earnings, ledger_rows
from settlement.host_chain import HostChain
from settlement.models import Earning, EarningKind, Receipt, Transaction, TransactionState
from tests import factories

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "sqlite", reason="counts SQLite's instructions"),
]

CHAIN = cast(
    HostChain,
    SimpleNamespace(
        key=factories.DEPLOYMENT, host=factories.HOST, deployment=SimpleNamespace(chain_id=factories.CHAIN_ID)
    ),
)
_STEPS = 10


@pytest.fixture
def instructions() -> Iterator[Callable[[Callable[[], Any]], int]]:
    """How many of SQLite's instructions something takes, to the ten."""
    connection.ensure_connection()
    database = connection.connection
    count = 0

    def tick() -> int:
        nonlocal count
        count += _STEPS
        return 0

    def measure(work: Callable[[], Any]) -> int:
        nonlocal count
        count = 0
        work()
        return count

    database.set_progress_handler(tick, _STEPS)
    yield measure
    database.set_progress_handler(None, 0)


def _history(rows: int) -> None:
    """Transactions that are over, long ago, with all of their gas booked."""
    for _ in range(rows):
        factories.make_transaction()
    earnings.book_gas_due(CHAIN)
    long_ago = timezone.now() - timedelta(days=1)
    Transaction.objects.update(created_at=long_ago)
    Receipt.objects.update(block_time=long_ago)
    earnings.book_gas_due(CHAIN)


def test_gas_of_one_more_transaction_is_booked_without_reading_the_earlier_ones(
    instructions: Callable[[Callable[[], Any]], int],
) -> None:
    costs = []
    for _ in range(3):
        _history(60)
        factories.make_transaction(state=TransactionState.FINAL)
        costs.append(instructions(lambda: earnings.book_gas_due(CHAIN)))
    assert Earning.objects.filter(kind=EarningKind.GAS).count() == 183
    assert costs[2] <= costs[0] * 1.2, costs


def test_gas_that_was_booked_minutes_ago_is_looked_for_once_per_transaction(
    instructions: Callable[[Callable[[], Any]], int],
) -> None:
    """Above the cursor everything is compared again: each with its own rows, and not with all there are."""
    costs = []
    for _ in range(2):
        for _ in range(60):
            factories.make_transaction()
        earnings.book_gas_due(CHAIN)
        costs.append(instructions(lambda: earnings.book_gas_due(CHAIN)))
    assert costs[1] <= costs[0] * 2.4, costs


def test_the_check_of_booked_gas_looks_for_each_receipts_row_alone(
    instructions: Callable[[Callable[[], Any]], int],
) -> None:
    costs = []
    for _ in range(2):
        _history(60)
        costs.append(instructions(lambda: list(ledger_rows.gas_is_booked())))
    assert costs[1] <= costs[0] * 2.4, costs


def test_an_event_is_booked_without_reading_the_earlier_ones(
    instructions: Callable[[Callable[[], Any]], int],
) -> None:
    costs = []
    for _ in range(3):
        for _ in range(30):
            session = factories.make_session()
            factories.add_checkpoint(session)
        receipt = factories.make_transaction().receipt
        movement = earnings.movement_of_gas(receipt, deployment=factories.DEPLOYMENT, session_id=session.pk)
        costs.append(instructions(lambda movement=movement: earnings.book([movement])))  # type: ignore[misc]
    assert costs[2] <= costs[0] * 1.2, costs
