"""The outbox: what shall be sent, committed before anything is signed.

Guarantees one transaction per key; asking again returns the row; the same key with other calldata is
an error (invariant 1). Never touches the network, so it may be called inside a database transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from settlement.chain.contracts import Call
from settlement.models import Transaction, TransactionKind


class KeyReused(Exception):
    """A key was used for two different calls: a bug in the caller, stopped before it costs money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A call to be made once, by the key of what it serves.

    A higher ``priority`` is sent first. ``cost_limit`` (wei) is what it may cost at most, the L1 data
    fee included: an amount that follows from the value it settles. Until it costs less, it waits.
    """

    key: str
    kind: TransactionKind
    call: Call[Any]
    priority: int = 0
    cost_limit: int | None = None


def enqueue(
    *,
    key: str,
    kind: TransactionKind,
    call: Call[Any],
    chain_id: int,
    sender: str,
    priority: int = 0,
    cost_limit: int | None = None,
) -> Transaction:
    """Ask for one ``Order``. Raises ``KeyReused``."""
    order = Order(key=key, kind=kind, call=call, priority=priority, cost_limit=cost_limit)
    return enqueue_all([order], chain_id=chain_id, sender=sender)[key]


def enqueue_all(orders: Sequence[Order], *, chain_id: int, sender: str) -> dict[str, Transaction]:
    """Ask for calls to be made once each by ``sender``; returns their rows by key. Raises ``KeyReused``."""
    by_key = {order.key: order for order in orders}
    if not by_key:
        return {}
    with transaction.atomic():
        rows = _rows(by_key)
        missing = [_row(order, chain_id=chain_id, sender=sender) for key, order in by_key.items() if key not in rows]
        if missing:
            # Another worker may ask for the same at the same moment: one row stands for both.
            Transaction.objects.bulk_create(missing, ignore_conflicts=True)
            rows = _rows(by_key)
    for key, order in by_key.items():
        row, asked = rows[key], _row(order, chain_id=chain_id, sender=sender)
        if (row.data, row.to, row.value) != (asked.data, asked.to.lower(), asked.value):
            raise KeyReused(f"transaction key {key!r} already stands for another call")
    return rows


def _rows(keys: Iterable[str]) -> dict[str, Transaction]:
    return {row.key: row for row in Transaction.objects.filter(key__in=list(keys))}


def _row(order: Order, *, chain_id: int, sender: str) -> Transaction:
    return Transaction(
        key=order.key,
        kind=order.kind,
        chain_id=chain_id,
        sender=sender,
        to=str(order.call.to),
        data="0x" + order.call.data.hex(),
        value=order.call.value,
        priority=order.priority,
        cost_limit=order.cost_limit,
    )
