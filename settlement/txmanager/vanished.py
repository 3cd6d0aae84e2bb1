"""Vanished blocks: transactions that were mined, or even final, go back to "sent" (invariant 12).

Guarantees that a receipt is removed only when its block is not part of the chain, and that the attempts
are then due to be sent again at once, in the order of nonces. A reorg below the point of finality happens
to a chain that was killed and lost its newest blocks, or to a test network that was rolled back.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from django.db import transaction

from settlement.chain.client import Block, ChainClient
from settlement.models import Attempt, AttemptState, Receipt, Transaction, TransactionEvent, TransactionState
from settlement.txmanager import events

logger = logging.getLogger(__name__)

_ENDED_ON_CHAIN = (TransactionState.FINAL, TransactionState.REVERTED, TransactionState.CANCELLED)
# When an attempt was sent that is due again by any setting.
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def take_back_lost(client: ChainClient, *, sender: str, mined_count: int) -> int:
    """Take back what had ended, with a nonce that the chain says is unused, in blocks that it does not have.

    Both are asked for: a node that lags may count too low, and the nonces that follow are looked up, not
    all rows there ever were. Returns how many rows moved.
    """
    rows = Transaction.objects.filter(
        chain_id=client.chain_id, sender=sender, nonce__gte=mined_count, state__in=_ENDED_ON_CHAIN
    )
    receipts = list(Receipt.objects.filter(transaction__in=rows).select_related("transaction", "attempt"))
    if not receipts:
        return 0
    heights = sorted({receipt.block_number for receipt in receipts})
    canonical = hashes_of(heights, client.blocks(heights))
    gone = [receipt for receipt in receipts if canonical[receipt.block_number] != receipt.block_hash]
    return sum(take_back(receipt) for receipt in gone)


def hashes_of(heights: list[int], blocks: list[Block | None]) -> dict[int, str]:
    """The hash of each height's block as the table spells it; empty where there is none."""
    return {height: "0x" + block.hash.hex() if block else "" for height, block in zip(heights, blocks, strict=True)}


def take_back(receipt: Receipt) -> bool:
    """Back to "sent" with a transaction whose receipt's block is gone."""
    row = receipt.transaction
    was_final = row.state != TransactionState.MINED
    reason = f"a reorg took block {receipt.block_number}" + (", which was final" if was_final else "")
    with transaction.atomic():
        moved = Transaction.objects.filter(pk=row.pk, state=row.state).update(
            state=TransactionState.SENT, reason=reason, revert="", observed_missing=0
        )
        if moved:
            Attempt.objects.filter(
                transaction=row,
                nonce=receipt.attempt.nonce,
                state__in=(AttemptState.MINED, AttemptState.REPLACED),
            ).update(state=AttemptState.SENT, sent_at=_LONG_AGO)
            Receipt.objects.filter(pk=receipt.pk).delete()
            what = TransactionEvent.What.LOST if was_final else TransactionEvent.What.REORGED
            events.record(row, what, actor=events.CONFIRMER, reason=reason)
    if moved:
        extra = {"event": "final_transaction_lost" if was_final else "reorg", "tx_hash": receipt.attempt.hash}
        logger.log(logging.ERROR if was_final else logging.WARNING, "%s with %s", reason, row.key, extra=extra)
    return bool(moved)
