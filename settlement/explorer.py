"""Where a chain's transactions, addresses and blocks can be looked up.

Pure; guarantees no link at all for a chain without a public explorer, such as the embedded one.
"""

from __future__ import annotations

from dataclasses import dataclass

from settlement.chain.deployment import Deployment

_BASES = {
    8453: "https://basescan.org",
    84532: "https://sepolia.basescan.org",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """Links into one chain's explorer; every link is ``None`` where there is no explorer."""

    base: str | None

    def transaction(self, transaction_hash: str) -> str | None:
        return self._link("tx", transaction_hash)

    def address(self, address: str) -> str | None:
        return self._link("address", address)

    def block(self, number: int) -> str | None:
        return self._link("block", str(number))

    def _link(self, kind: str, what: str) -> str | None:
        return f"{self.base}/{kind}/{what}" if self.base and what else None


def explorer_of(chain_id: int | None, *, deployment: Deployment | None = None) -> Explorer:
    """The explorer of a chain: the one that its deployment names, else the one that is known for it."""
    if deployment is not None and deployment.chain_id == chain_id and deployment.explorer:
        return Explorer(base=deployment.explorer.rstrip("/"))
    return Explorer(base=None if chain_id is None else _BASES.get(chain_id))


def chain_id_of(deployment: str) -> int | None:
    """The chain of a deployment's name in database rows (``HostChain.key``: ``<chain id>:<marketplace>…``)."""
    chain_id = deployment.partition(":")[0]
    return int(chain_id) if chain_id.isdecimal() else None
