"""The transaction manager of one sender, as the domain uses it: send what is due, watch what was sent."""

from __future__ import annotations

from dataclasses import dataclass

from settlement.chain.client import ChainClient
from settlement.chain.signer import Signer
from settlement.txmanager import broadcaster, confirmer
from settlement.txmanager.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionManager:
    """Everything needed to get a sender's transactions onto the chain."""

    client: ChainClient
    signer: Signer
    limits: Limits

    def broadcast(self) -> int:
        """Sign and send what is due; returns how many transactions were handed to a node."""
        return broadcaster.broadcast(self.client, signer=self.signer, limits=self.limits)

    def watch(self) -> int:
        """Look for receipts and re-check those that are not final; returns how many rows moved."""
        return confirmer.watch(self.client, sender=self.signer.address, limits=self.limits)
