"""The point of finality: up to which block what the chain says is believed for good (invariant 10)."""

from __future__ import annotations

from settlement.chain.client import ChainClient
from settlement.txmanager.limits import Limits


def final_height(client: ChainClient, *, limits: Limits) -> int:
    """The number of the newest block that counts as final; negative if there is none yet."""
    if limits.finality == "depth":
        return client.head().number - limits.confirmations + 1
    block = client.block(limits.finality)
    return -1 if block is None else block.number
