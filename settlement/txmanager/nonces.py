"""Nonces come from the table, reconciled with the chain; a nonce is given once.

Guarantees, by a unique index, that one transaction per sender is being started at a time and that
no two transactions hold one nonce. Never touches the network.
"""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.db.models import Max

from settlement.models import Transaction, TransactionState


def start_next(row: Transaction, *, mined_count: int) -> bool:
    """Give a queued transaction its nonce. ``False`` if another is being started or took the row.

    ``mined_count`` is the chain's count of the sender's mined transactions: the table may be behind
    it when the key was used elsewhere, and then the chain is right.
    """
    try:
        with transaction.atomic():
            mine = Transaction.objects.filter(chain_id=row.chain_id, sender=row.sender).exclude(
                state=TransactionState.FAILED
            )
            highest = mine.aggregate(highest=Max("nonce"))["highest"]
            nonce = mined_count if highest is None else max(mined_count, highest + 1)
            started = Transaction.objects.filter(pk=row.pk, state=TransactionState.QUEUED).update(
                state=TransactionState.IN_PROGRESS, nonce=nonce, reason=""
            )
    except IntegrityError:
        # Another worker starts a transaction of this sender just now.
        return False
    return bool(started)
