"""Undecoded logs as adapters read them: which event, in what order, at what place of the chain.

Guarantees nothing about a log's content; the generated events decode it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settlement.chain.contracts import ContractEvent, EventLog
from settlement.chain.marketplace import LogPosition


def topic_of(log: Mapping[str, Any]) -> bytes:
    """What names the log's event; empty for an anonymous one."""
    topics = log["topics"]
    return bytes.fromhex(str(topics[0]).removeprefix("0x")) if topics else b""


def index_of(log: Mapping[str, Any]) -> int:
    """The log's number in its block."""
    return int(str(log["logIndex"]), 16)


def order_of(log: Mapping[str, Any]) -> tuple[int, int]:
    """Sorts logs as the chain emitted them."""
    return int(str(log["blockNumber"]), 16), index_of(log)


def position_of(log: EventLog[ContractEvent]) -> LogPosition:
    """Where a decoded event stands."""
    return LogPosition(
        transaction_hash="0x" + log.transaction_hash.hex(),
        log_index=log.log_index,
        block_number=log.block_number,
        block_hash="0x" + log.block_hash.hex(),
    )
