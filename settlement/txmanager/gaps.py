"""Gaps: nonces without which the chain takes nothing that comes after them.

Guarantees that a nonce which the table never used, below one that waits, is filled with a transfer of
nothing (invariant 13). A table that was restored from a backup has such gaps. Sends nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.db import transaction

from settlement.models import Attempt, AttemptState, Transaction, TransactionEvent, TransactionKind, TransactionState
from settlement.txmanager import events, senders
from settlement.txmanager.turn import Turn

logger = logging.getLogger(__name__)


def fill(turn: Turn, rows: Sequence[Transaction], *, mined_count: int) -> int:
    """Start a transfer of nothing for each missing nonce below the highest that waits; returns how many."""
    highest = max((row.nonce for row in rows if row.nonce is not None), default=mined_count)
    if highest <= mined_count:
        return 0
    known = set(turn.rows.filter(nonce__gte=mined_count, nonce__lt=highest).values_list("nonce", flat=True))
    missing = [nonce for nonce in range(mined_count, highest) if nonce not in known][: turn.limits.max_in_flight]
    for nonce in missing:
        _fill(turn, nonce)
    return len(missing)


def _fill(turn: Turn, nonce: int) -> None:
    key = f"fill:{turn.lease.chain_id}:{turn.sender}:{nonce}"
    reason = f"nonce {nonce} is unused, and later ones wait for it"
    with transaction.atomic():
        senders.hold(turn.lease)
        # A gap at one nonce may come twice: filled, displaced by another wallet, and lost in a reorg.
        row, _ = Transaction.objects.get_or_create(
            key=key,
            defaults={
                "kind": TransactionKind.FILL,
                "chain_id": turn.lease.chain_id,
                "sender": turn.sender,
                "to": turn.sender,
                "data": "0x",
                "state": TransactionState.IN_PROGRESS,
                "nonce": nonce,
            },
        )
        Transaction.objects.filter(pk=row.pk, nonce__isnull=True).update(
            state=TransactionState.IN_PROGRESS, nonce=nonce, retry_at=None
        )
        Attempt.objects.filter(transaction=row, nonce=nonce, state=AttemptState.DISPLACED).update(
            state=AttemptState.SIGNED
        )
        events.record(row, TransactionEvent.What.GAP_FILLED, actor=events.BROADCASTER, reason=reason)
    logger.error("%s: %s", turn.sender, reason, extra={"event": "nonce_gap"})
