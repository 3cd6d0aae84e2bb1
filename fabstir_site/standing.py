"""How settlement stands, for ``/health`` and ``/status``: its RPC nodes, its sender, its gas, its ledger.

Guarantees to name no URL and no key, to ask nothing of the chain, and to raise nothing about a node without
a deployment or a usable key. What is said of the RPC nodes is what this process knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError
from django.utils import timezone

from fabstir_site.logs import redact
from settlement import ledger
from settlement.chain.endpoints import EndpointState, Standing
from settlement.chain.marketplace import UnsupportedGeneration
from settlement.chain.signer import KeyUnusable
from settlement.host_chain import HostChain, NoDeployment, chain_client, host_chain
from settlement.models import LedgerCheck
from settlement.txmanager import quotes, senders

_ANSWERING = (Standing.OK, Standing.UNTRIED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementStanding:
    """``gas_spent`` and ``gas_budget`` in wei, of the last 24 hours, ``None`` on a node that sends nothing.

    ``violations`` by invariant as of the last checks; ``checked_at`` (ISO 8601) by part of the ledger.
    """

    rpc_nodes: tuple[EndpointState, ...]
    sender_paused: str
    gas_spent: int | None
    gas_budget: int | None
    violations: dict[str, int]
    checked_at: dict[str, str]

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at although prompts are served."""
        return list(self._warnings())

    def _warnings(self) -> Iterator[str]:
        if self.sender_paused:
            yield f"Claims are not sent for now: {self.sender_paused}"
        for node in self.rpc_nodes:
            if node.standing not in _ANSWERING:
                yield f"{node.name} is {node.standing}: {node.reason}"
        if self.gas_spent is not None and self.gas_budget is not None and self.gas_spent >= self.gas_budget:
            yield (
                f"The gas budget of a day is used up ({self.gas_spent} of {self.gas_budget} wei). "
                "Claims wait, or raise FABSTIR_DAILY_GAS_BUDGET_WEI."
            )
        broken = {name: count for name, count in self.violations.items() if count}
        if broken:
            listed = ", ".join(f"{name}: {count}" for name, count in broken.items())
            yield f"The ledger has violations ({listed}). Run manage.py verify_ledger."

    def as_json(self) -> dict[str, Any]:
        """As clients read it; amounts as strings."""
        return {
            "rpc_nodes": [
                {
                    "name": node.name,
                    "standing": str(node.standing),
                    "reason": redact(node.reason),
                    "last_block": node.last_block,
                    "failures": node.failures,
                    "resting_seconds": int(node.resting_seconds),
                }
                for node in self.rpc_nodes
            ],
            "sender_paused": redact(self.sender_paused),
            "gas_spent_wei": None if self.gas_spent is None else str(self.gas_spent),
            "gas_budget_wei": None if self.gas_budget is None else str(self.gas_budget),
            "ledger": {
                "violations": self.violations,
                "mismatches": sum(self.violations.values()),
                "checked_at": self.checked_at,
            },
        }


def read() -> SettlementStanding:
    """From this process and the database. What the database cannot tell is left out: health says why."""
    nodes = tuple(chain_client().endpoints())
    chain = _sending_chain()
    try:
        paused, spent = ("", None) if chain is None else _sender(chain)
        violations, checked = ledger.mismatches(), _checked_at()
    except DatabaseError:
        # Named among the issues already.
        paused, spent, violations, checked = "", None, {}, {}
    return SettlementStanding(
        rpc_nodes=nodes,
        sender_paused=paused,
        gas_spent=spent,
        gas_budget=None if chain is None or spent is None else chain.limits.daily_budget,
        violations=violations,
        checked_at=checked,
    )


def _sending_chain() -> HostChain | None:
    try:
        chain = host_chain()
    except (NoDeployment, UnsupportedGeneration, KeyUnusable):
        return None
    return None if chain.signer is None else chain


def _sender(chain: HostChain) -> tuple[str, int]:
    chain_id, address = chain.deployment.chain_id, chain.host or ""
    paused = senders.pause_reason(chain_id=chain_id, address=address)
    return paused, quotes.spent(chain_id=chain_id, sender=address, now=timezone.now())


def _checked_at() -> dict[str, str]:
    return {check.part: check.at.isoformat() for check in LedgerCheck.objects.order_by("at")}
