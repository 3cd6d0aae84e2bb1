"""Displacement: another wallet with the host's key used a nonce that was given here.

Guarantees that "nonce too low" is evidence, not a verdict (invariant 8): a row is displaced only when its
nonce is used in a final block, at several looks none of its attempts has a receipt, and none of them is
in the very block that used the nonce. Its work is then queued again under a new nonce, since nothing of
it can have run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce
from django.utils import timezone

from settlement.chain.client import ChainClient, NodeRefused
from settlement.models import (
    Attempt,
    AttemptState,
    Transaction,
    TransactionEvent,
    TransactionKind,
    TransactionState,
)
from settlement.txmanager import events
from settlement.txmanager.finality import final_height
from settlement.txmanager.limits import Limits

logger = logging.getLogger(__name__)

OBSERVATIONS = 3


def finally_used(
    client: ChainClient, *, sender: str, rows: Sequence[Transaction], mined_count: int, limits: Limits
) -> int:
    """How many nonces the account has used as of the final block, as far as that matters for ``rows``."""
    lowest = min(row.nonce for row in rows if row.nonce is not None)
    if mined_count <= lowest:
        return 0
    height = final_height(client, limits=limits)
    if height < 0:
        return 0
    try:
        return client.transaction_count(sender, block=hex(height))
    except NodeRefused as refused:
        # A node without that block's state: no evidence against anybody.
        logger.warning("no count at block %d: %s", height, refused, extra={"event": "no_historic_state"})
        return 0


def observe(client: ChainClient, rows: Sequence[Transaction], *, used: int) -> int:
    """Count another look at rows without a receipt; displaces those that are missing too often."""
    moved = 0
    missing = [row for row in rows if row.nonce is not None and row.nonce < used]
    seen_again = [row.pk for row in rows if row.observed_missing and row not in missing]
    if seen_again:
        Transaction.objects.filter(pk__in=seen_again).update(observed_missing=0)
    for row in missing:
        Transaction.objects.filter(pk=row.pk, state=TransactionState.SENT).update(
            observed_missing=F("observed_missing") + 1
        )
        if row.observed_missing + 1 < OBSERVATIONS:
            continue
        if client.on_one_node(lambda node, row=row: _is_anothers(node, row)):  # type: ignore[misc]
            moved += _displace(row)
        else:
            Transaction.objects.filter(pk=row.pk).update(observed_missing=0)
    return moved


def _is_anothers(node: ChainClient, row: Transaction) -> bool:
    """Whether the block that used the row's nonce holds none of its attempts. ``False`` if nobody can tell.

    A node whose index of transactions lags, or was pruned, has no receipt for what is mined all the same.
    """
    assert row.nonce is not None  # noqa: S101 - only rows that hold a nonce are observed
    try:
        number = _block_of_nonce(node, sender=row.sender, nonce=row.nonce)
    except NodeRefused as refused:
        logger.warning("no counts of old blocks: %s", refused, extra={"event": "no_historic_state"})
        return False
    included = node.transactions_in(number)
    ours = {attempt.hash for attempt in row.attempts.all()} & {"0x" + each.hex() for each in included or ()}
    if ours:
        reason = f"nonce {row.nonce} is its own, in block {number}, but the node has no receipt: ask another (RPC_URL)"
        Transaction.objects.filter(pk=row.pk).update(reason=reason)
        logger.error("%s: %s", row.key, reason, extra={"event": "receipt_missing", "tx_hash": min(ours)})
    return included is not None and not ours


def _block_of_nonce(node: ChainClient, *, sender: str, nonce: int) -> int:
    """The block that used the nonce: back from the head in growing steps, then by halving."""
    high = node.head().number
    low, step = high, 1
    while low > 0 and _used_by(node, sender=sender, nonce=nonce, block=low):
        high, low, step = low, max(0, low - step), 2 * step
    while low + 1 < high:
        middle = (low + high) // 2
        if _used_by(node, sender=sender, nonce=nonce, block=middle):
            high = middle
        else:
            low = middle
    return high


def _used_by(node: ChainClient, *, sender: str, nonce: int, block: int) -> bool:
    return node.transaction_count(sender, block=hex(block)) > nonce


def _displace(row: Transaction) -> bool:
    reason = f"nonce {row.nonce} was used by another wallet with this key"
    filler = row.kind == TransactionKind.FILL
    with transaction.atomic():
        displaced = Transaction.objects.filter(
            pk=row.pk, state=TransactionState.SENT, nonce=row.nonce, observed_missing__gte=OBSERVATIONS
        ).update(
            # There is no gap any more; anything else still has to be done.
            state=TransactionState.CANCELLED if filler else TransactionState.QUEUED,
            nonce=None,
            reason=reason,
            retries=0,
            retry_at=None,
            observed_missing=0,
            bump_requested_at=None,
        )
        if displaced:
            Attempt.objects.filter(transaction=row).exclude(state=AttemptState.DISPLACED).update(
                state=AttemptState.DISPLACED, sent_at=Coalesce("sent_at", timezone.now())
            )
            events.record(row, TransactionEvent.What.DISPLACED, actor=events.CONFIRMER, reason=reason)
    if displaced:
        logger.error("%s: %s; it is queued again", row.key, reason, extra={"event": "nonce_stolen"})
    return bool(displaced)
