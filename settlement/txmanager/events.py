"""The audit of transactions: what was done out of the ordinary, by whom and why. Only ever appended to."""

from __future__ import annotations

from django.utils import timezone

from settlement.models import Transaction, TransactionEvent

BROADCASTER = "broadcaster"
CONFIRMER = "confirmer"


def record(row: Transaction, what: TransactionEvent.What, *, actor: str, reason: str) -> None:
    """Write one line. Call it in the database transaction that does what it tells of."""
    TransactionEvent.objects.create(
        transaction=row, what=what, actor=actor[:150], reason=reason[:500], at=timezone.now()
    )


def why_cancelled(row_id: int) -> str:
    """What was said when a transaction was asked to be cancelled, or refused for good."""
    what = (TransactionEvent.What.CANCEL_REQUESTED, TransactionEvent.What.REFUSED)
    asked = TransactionEvent.objects.filter(transaction_id=row_id, what__in=what).last()
    return asked.reason if asked else ""
