"""Nonces come from the table, reconciled with the chain; a nonce is given once.

Guarantees that a batch of rows gets consecutive nonces together with its signed attempts, or none of
it does; a unique index guarantees that no two transactions hold one nonce (invariant 3). Never touches
the network, and starts nothing without the sender's lease.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Case, Max, Value, When

from settlement.models import Attempt, Transaction, TransactionEvent, TransactionState
from settlement.txmanager import events, senders
from settlement.txmanager.senders import Lease


class RowsChanged(Exception):
    """A row was cancelled while it was being signed; nothing of the batch was stored."""


def highest(*, chain_id: int, sender: str) -> int | None:
    """The highest nonce the table ever gave, ``None`` before the first."""
    rows = Transaction.objects.filter(chain_id=chain_id, sender=sender, nonce__isnull=False)
    found: int | None = rows.aggregate(highest=Max("nonce"))["highest"]
    return found


def next_nonce(highest_given: int | None, *, mined_count: int) -> int:
    """The nonce to give next.

    ``mined_count`` is the chain's count of the sender's mined transactions: the table may be behind
    it when the key was used elsewhere, and then the chain is right.
    """
    return mined_count if highest_given is None else max(mined_count, highest_given + 1)


def start(attempts: Sequence[Attempt], *, lease: Lease) -> None:
    """Give queued transactions the nonces they were signed for, and store the signed attempts.

    All in one commit, guarded by the lease's fence. One commit for a batch instead of one transaction in
    progress at a time: the order of nonces and "stored before sent" hold for a batch as well, and a claim
    need not wait until the one before it is with a node. Raises ``RowsChanged`` or ``LeaseLost``.
    """
    given = [When(pk=attempt.transaction_id, then=Value(attempt.nonce)) for attempt in attempts]
    with transaction.atomic():
        senders.hold(lease)
        started = Transaction.objects.filter(
            pk__in=[attempt.transaction_id for attempt in attempts],
            state=TransactionState.QUEUED,
            cancel_requested_at__isnull=True,
        ).update(state=TransactionState.IN_PROGRESS, nonce=Case(*given), reason="", retry_at=None)
        if started != len(attempts):
            raise RowsChanged
        Attempt.objects.bulk_create(attempts)


def store_for(
    row: Transaction, attempt: Attempt, *, lease: Lease, event: TransactionEvent.What | None = None, reason: str = ""
) -> bool:
    """Store one more attempt of a transaction that holds a nonce. ``False`` if it is mined by now.

    ``event`` and ``reason`` go into the audit in the same commit. Raises ``LeaseLost``.
    """
    with transaction.atomic():
        senders.hold(lease)
        # Takes the row's lock: the confirmer either sees this attempt, or has ended the row before it.
        unmined = Transaction.objects.unmined().filter(pk=row.pk, nonce=attempt.nonce)
        if not unmined.update(observed_missing=0, bump_requested_at=None, retry_at=None):
            return False
        attempt.save(force_insert=True)
        if event is not None:
            events.record(row, event, actor=events.BROADCASTER, reason=reason)
    return True
