"""Reorgs deeper than finality: what was settled in blocks that the chain no longer has is undone.

An ordinary reorg never reaches a confirmed claim; a chain that lost its newest blocks (an embedded one
that was killed, a test network that was rolled back) does. Guarantees that what was booked from such a
block is taken back by rows of its own, so that it can be booked again where it stands now.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from jobs import sessions
from settlement import earnings, following
from settlement.host_chain import HostChain
from settlement.models import Checkpoint, Closing, Earning, Receipt
from settlement.txmanager import vanished

logger = logging.getLogger(__name__)

# Blocks that are looked at below the last one read. Deeper than any chain that is worth settling on forgets.
DEPTH = 1000


def undo_vanished(chain: HostChain, *, since: int) -> list[str]:
    """Undo what was settled from block ``since`` on in blocks that are gone; one line for each thing undone."""
    receipts = list(
        Receipt.objects.filter(
            transaction__chain_id=chain.deployment.chain_id,
            transaction__sender=chain.host or "",
            block_number__gte=since,
        ).select_related("transaction", "attempt")
    )
    booked = Earning.objects.live().filter(deployment=chain.key, block_number__gte=since)
    places = set(booked.values_list("block_number", "block_hash"))
    gone = _gone(chain, {*places, *((receipt.block_number, receipt.block_hash) for receipt in receipts)})
    lost = [receipt for receipt in receipts if receipt.block_hash in gone]
    reversed_places = set(booked.filter(block_hash__in=gone).values_list("transaction_hash", "block_hash"))
    # A transaction may be mined anew already, and have another receipt: its bookings tell that it moved.
    hashes = {receipt.attempt.hash for receipt in lost} | {transaction_hash for transaction_hash, _ in reversed_places}
    lines = [
        f"{receipt.transaction}: to be found again, block {receipt.block_number} is gone from the chain"
        for receipt in lost
        if vanished.take_back(receipt)
    ]
    paid = Checkpoint.objects.paid().filter(session__deployment=chain.key, transaction__attempts__hash__in=hashes)
    for checkpoint in paid.select_related("session").distinct().order_by("-id"):
        if following.take_back_paid(checkpoint):
            lines.append(f"{checkpoint}: taken back, its block is gone from the chain")
    for transaction_hash, block_hash in sorted(reversed_places):
        rows = earnings.reverse(transaction_hash=transaction_hash, block_hash=block_hash)
        if rows:
            lines.append(f"{rows} bookings of transaction {transaction_hash} reversed: its block is gone")
    for line in lines:
        logger.error(line, extra={"event": "reorg"})
    return lines


def _gone(chain: HostChain, places: Iterable[tuple[int, str]]) -> set[str]:
    """The hashes, of blocks at those heights, that the chain does not have there."""
    stated = sorted(places)
    blocks = chain.client.blocks([number for number, _ in stated])
    return {
        block_hash
        for (_, block_hash), block in zip(stated, blocks, strict=True)
        if block is None or "0x" + block.hash.hex() != block_hash
    }


def reopen(chain: HostChain, session_ids: Iterable[int]) -> int:
    """Sessions whose job is active on the chain after all: close them again. Returns how many."""
    reopened = sessions.reopen_for_closing(session_ids, reason="its job is active on the chain again")
    Closing.objects.filter(session_id__in=reopened).update(
        ended_status="", transaction=None, retry_at=None, paid_gross=None, paid_host=None
    )
    return len(reopened)
