"""The contract that keeps what hosts have earned: alike in every generation, and in none part of the marketplace.

Guarantees that a deployment without one is a named error where the contract is needed, and nowhere else:
such a node claims and completes, and only cannot withdraw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eth_utils.address import to_checksum_address

from settlement.chain.bindings import HostEarnings, events
from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call
from settlement.chain.event_logs import position_of, topic_of
from settlement.chain.marketplace import UnsupportedGeneration, Withdrawal


class Payouts:
    """Calls and events of a deployment's HostEarnings. ``address`` is in lower case, ``None`` if unknown."""

    def __init__(self, address: str | None) -> None:
        self.address = None if address is None else address.lower()

    @property
    def _contract(self) -> HostEarnings:
        if self.address is None:
            raise UnsupportedGeneration("The deployment names no HostEarnings contract (CONTRACT_HOST_EARNINGS).")
        return HostEarnings(self.address)

    def withdraw(self, *, token: str, amount: int | None) -> Call[None]:
        """Pay the sender ``amount`` base units of a token, or all of them for ``None``."""
        asked = to_checksum_address(token)
        if amount is None:
            return self._contract.withdraw_all(asked)
        return self._contract.withdraw(amount=amount, token=asked)

    def withdraw_many(self, tokens: Sequence[str]) -> Call[None]:
        """Pay the sender all its earnings in each of the tokens."""
        return self._contract.withdraw_multiple([to_checksum_address(token) for token in tokens])

    def withdrawable(self, client: ChainClient, *, host: str, token: str) -> int:
        """What the host may withdraw of a token, base units."""
        asked = self._contract.get_balance(host=to_checksum_address(host), token=to_checksum_address(token))
        return client.call(asked)

    def withdrawals(self, logs: Iterable[Mapping[str, Any]]) -> list[Withdrawal]:
        """The withdrawals among the logs, of every host."""
        found: list[Withdrawal] = []
        for log in logs:
            if str(log["address"]).lower() != self.address or topic_of(log) != events.EarningsWithdrawn.topic:
                continue
            withdrawn = events.EarningsWithdrawn.decode(log)
            found.append(
                Withdrawal(
                    host=withdrawn.event.host.lower(),
                    token=withdrawn.event.token.lower(),
                    amount=withdrawn.event.amount,
                    remaining=withdrawn.event.remaining_balance,
                    position=position_of(withdrawn),
                )
            )
        return found
