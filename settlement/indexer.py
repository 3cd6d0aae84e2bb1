"""The indexer: reads the marketplace's events, final blocks only, and applies them once.

Guarantees that the cursor moves only after a range was applied, so that a crash repeats a range and
never skips one, and only over blocks that the node had which told their events; applying is idempotent. A
cursor on a block that is gone goes back, after what was settled in blocks that are gone has been undone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from settlement import reorgs, replays, withdrawals
from settlement.chain.client import LOG_RANGE_BLOCKS, Block, ChainClient, ChainUnavailable
from settlement.chain.marketplace import EndedJob
from settlement.closing import apply_ended_job
from settlement.host_chain import HostChain
from settlement.models import ChainCursor
from settlement.txmanager.finality import final_height

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """The last block of a range and the logs of all of it, told by one node at one time."""

    end: Block
    logs: Sequence[Mapping[str, Any]]


def index_events(chain: HostChain) -> int:
    """Apply the events of blocks that have become final; returns the last block applied.

    Raises ``ChainUnavailable``, also where a node answers that is behind the cursor.
    """
    final = final_height(chain.client, limits=chain.limits)
    start = _next_block(chain, final=final)
    while start <= final:
        part = _read_part(chain, start)
        if part is None:
            break
        _apply_part(chain, part.logs)
        ChainCursor.objects.update_or_create(
            deployment=chain.key,
            defaults={"block_number": part.end.number, "block_hash": "0x" + part.end.hash.hex()},
        )
        start = part.end.number + 1
    return start - 1


def apply_from(chain: HostChain, *, start: int) -> None:
    """Apply the events of final blocks from ``start`` on once more; the cursor stays where it is.

    Raises ``ChainUnavailable`` where the node that answers does not have them all.
    """
    final = final_height(chain.client, limits=chain.limits)
    while start <= final:
        part = _read_part(chain, start)
        if part is None:
            raise ChainUnavailable(f"the node that answers is behind: it has no final block {start} of {final}")
        _apply_part(chain, part.logs)
        start = part.end.number + 1


def _read_part(chain: HostChain, start: int) -> _Part | None:
    """Final blocks from ``start`` on, as many as one question may be about; ``None`` if the node has none."""

    def read(node: ChainClient) -> _Part | None:
        # Another node may be behind this one and answer for a shorter range without a word: what is read up
        # to is what the node that has the logs calls final.
        number = min(start + LOG_RANGE_BLOCKS - 1, final_height(node, limits=chain.limits))
        end = node.block(number) if number >= start else None
        if end is None:
            return None
        return _Part(end, node.logs(addresses=chain.marketplace.addresses, from_block=start, to_block=number))

    return chain.client.on_one_node(read)


def _apply_part(chain: HostChain, logs: Sequence[Mapping[str, Any]]) -> None:
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
    if block is None and replays.newest_head_told(chain.client) >= cursor.block_number:
        # One node has told of that block, another does not have it yet: no reorg, and nothing to read there.
        raise ChainUnavailable(f"the node that answers is behind: it does not have block {cursor.block_number}")
    again = max(first or 0, min(cursor.block_number, final) - reorgs.DEPTH)
    logger.warning(
        "block %s is gone in a reorg: reading events again from block %s",
        cursor.block_number,
        again,
        extra={"event": "reorg"},
    )
    reorgs.undo_vanished(chain, since=again)
    return again
