"""The indexer: reads the marketplace's events, final blocks only, and applies them once.

Guarantees that the cursor moves only after a range was applied, so that a crash repeats a range and
never skips one; applying is idempotent. A cursor on a block that is gone goes back, after what was
settled in blocks that are gone has been undone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from settlement import reorgs, withdrawals
from settlement.chain.client import LOG_RANGE_BLOCKS
from settlement.chain.marketplace import EndedJob
from settlement.closing import apply_ended_job
from settlement.host_chain import HostChain
from settlement.models import ChainCursor
from settlement.txmanager.finality import final_height

logger = logging.getLogger(__name__)


def index_events(chain: HostChain) -> int:
    """Apply the events of blocks that have become final; returns the last block applied."""
    final = final_height(chain.client, limits=chain.limits)
    start = _next_block(chain, final=final)
    while start <= final:
        end = min(start + LOG_RANGE_BLOCKS - 1, final)
        block = chain.client.block(end)
        if block is None:
            break
        _apply_range(chain, start, end)
        ChainCursor.objects.update_or_create(
            deployment=chain.key, defaults={"block_number": end, "block_hash": "0x" + block.hash.hex()}
        )
        start = end + 1
    return start - 1


def apply_from(chain: HostChain, *, start: int) -> None:
    """Apply the events of final blocks from ``start`` on once more; the cursor stays where it is."""
    final = final_height(chain.client, limits=chain.limits)
    for first in range(start, final + 1, LOG_RANGE_BLOCKS):
        _apply_range(chain, first, min(first + LOG_RANGE_BLOCKS - 1, final))


def _apply_range(chain: HostChain, start: int, end: int) -> None:
    logs = chain.client.logs(addresses=chain.marketplace.addresses, from_block=start, to_block=end)
    _apply(chain, chain.marketplace.ended_jobs(logs))
    withdrawals.apply_events(chain, logs)


def _apply(chain: HostChain, ends: Sequence[EndedJob]) -> None:
    numbers = sorted({ended.position.block_number for ended in ends})
    times = {block.number: block.time for block in chain.client.blocks(numbers) if block is not None}
    for ended in ends:
        apply_ended_job(ended, chain=chain, at=times.get(ended.position.block_number))


def _next_block(chain: HostChain, *, final: int) -> int:
    cursor = ChainCursor.objects.filter(deployment=chain.key).first()
    # A deployment that does not say where it starts is followed from now on.
    first = chain.deployment.deployed_at_block
    if cursor is None:
        return max(0, final) if first is None else first
    block = chain.client.block(cursor.block_number)
    if block is not None and "0x" + block.hash.hex() == cursor.block_hash:
        return cursor.block_number + 1
    again = max(first or 0, min(cursor.block_number, final) - reorgs.DEPTH)
    logger.warning(
        "block %s is gone in a reorg: reading events again from block %s",
        cursor.block_number,
        again,
        extra={"event": "reorg"},
    )
    reorgs.undo_vanished(chain, since=again)
    return again
