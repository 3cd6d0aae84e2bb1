"""What an operator may ask of a transaction: to cancel it, or to offer more for it. Both are audited.

Guarantees that a request is a row change that survives a crash; the broadcaster carries it out. What is
queued is cancelled at once; what may be with a node is replaced by nothing under the same nonce, and
whichever is mined decides. Never touches the network.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from settlement.models import Transaction, TransactionEvent, TransactionKind, TransactionState
from settlement.txmanager import events

logger = logging.getLogger(__name__)


def cancel(transaction_id: int, *, actor: str, reason: str) -> bool:
    """Ask that a transaction never runs. ``False`` if it is mined, has ended, or is being cancelled already."""
    now = timezone.now()
    with transaction.atomic():
        asked = (
            Transaction.objects.filter(
                pk=transaction_id,
                state__in=(TransactionState.QUEUED, TransactionState.IN_PROGRESS, TransactionState.SENT),
                cancel_requested_at__isnull=True,
            )
            .exclude(kind=TransactionKind.FILL)
            .update(cancel_requested_at=now, bump_requested_at=None, retry_at=None, reason=f"cancelled: {reason}"[:500])
        )
        if not asked:
            return False
        row = Transaction.objects.get(pk=transaction_id)
        events.record(row, TransactionEvent.What.CANCEL_REQUESTED, actor=actor, reason=reason)
        cancel_queued(Transaction.objects.filter(pk=transaction_id))
    logger.warning("%s asks to cancel %s: %s", actor, row.key, reason, extra={"event": "cancel_requested"})
    return True


def bump(transaction_id: int, *, actor: str) -> bool:
    """Ask that more is offered for a transaction that waits to be mined. ``False`` if it does not wait for that."""
    with transaction.atomic():
        asked = Transaction.objects.unmined().filter(pk=transaction_id, bump_requested_at__isnull=True)
        if not asked.update(bump_requested_at=timezone.now()):
            return False
        row = Transaction.objects.get(pk=transaction_id)
        events.record(row, TransactionEvent.What.BUMP_REQUESTED, actor=actor, reason="")
    logger.warning("%s asks to bump %s", actor, row.key, extra={"event": "bump_requested"})
    return True


def cancel_queued(rows: QuerySet[Transaction]) -> int:
    """Cancel those of ``rows`` that hold no nonce and are asked to be; returns how many."""
    return rows.filter(state=TransactionState.QUEUED, cancel_requested_at__isnull=False).update(
        state=TransactionState.CANCELLED
    )
