"""The indexer: reads the marketplace's events, final blocks only, and applies them once.

Guarantees that the cursor moves only after a range was applied, so that a crash repeats a range and
never skips one; applying is idempotent. A cursor on a block that is gone starts over from the
deployment's first block.
"""

from __future__ import annotations

import logging

from settlement.closing import apply_ended_job
from settlement.host_chain import HostChain
from settlement.models import ChainCursor

logger = logging.getLogger(__name__)

# Public RPC nodes refuse larger ranges.
RANGE_BLOCKS = 1000


def index_events(chain: HostChain) -> int:
    """Apply the events of blocks that have become final; returns the last block applied."""
    final = chain.client.head().number - chain.confirmations + 1
    start = _next_block(chain, final=final)
    while start <= final:
        end = min(start + RANGE_BLOCKS - 1, final)
        block = chain.client.block(end)
        if block is None:
            break
        logs = chain.client.logs(addresses=chain.marketplace.addresses, from_block=start, to_block=end)
        for ended in chain.marketplace.ended_jobs(logs):
            apply_ended_job(ended, chain=chain)
        ChainCursor.objects.update_or_create(
            deployment=chain.key, defaults={"block_number": end, "block_hash": "0x" + block.hash.hex()}
        )
        start = end + 1
    return start - 1


def _next_block(chain: HostChain, *, final: int) -> int:
    cursor = ChainCursor.objects.filter(deployment=chain.key).first()
    if cursor is not None:
        block = chain.client.block(cursor.block_number)
        if block is not None and "0x" + block.hash.hex() == cursor.block_hash:
            return cursor.block_number + 1
        logger.warning(
            "block %s is gone in a reorg: reading events again", cursor.block_number, extra={"event": "reorg"}
        )
    # A deployment that does not say where it starts is followed from now on.
    first = chain.deployment.deployed_at_block
    return max(0, final) if first is None else first
