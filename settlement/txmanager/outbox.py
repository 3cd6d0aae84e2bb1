"""The outbox: what shall be sent, committed before anything is signed.

Guarantees one transaction per key; asking again returns the row; the same key with other calldata is
an error. Never touches the network, so it may be called inside a database transaction.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction

from settlement.chain.contracts import Call
from settlement.models import Transaction, TransactionKind


class KeyReused(Exception):
    """A key was used for two different calls: a bug in the caller, stopped before it costs money."""


def enqueue(*, key: str, kind: TransactionKind, call: Call[Any], chain_id: int, sender: str) -> Transaction:
    """Ask for ``call`` to be made once by ``sender``. Raises ``KeyReused``."""
    data = "0x" + call.data.hex()
    with transaction.atomic():
        row, created = Transaction.objects.get_or_create(
            key=key,
            defaults={
                "kind": kind,
                "chain_id": chain_id,
                "sender": sender,
                "to": str(call.to),
                "data": data,
                "value": call.value,
            },
        )
    if not created and (row.data, row.to, row.value) != (data, str(call.to).lower(), call.value):
        raise KeyReused(f"transaction key {key!r} already stands for another call")
    return row
