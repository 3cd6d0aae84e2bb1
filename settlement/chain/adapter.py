"""What every marketplace adapter does alike: ending jobs, paying out, and naming what it needs of the contract.

Guarantees one spelling of it for all generations; what differs, an adapter states as its own class attributes
and methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from eth_typing import ChecksumAddress

from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call, FunctionSpec
from settlement.chain.deployment import Deployment
from settlement.chain.marketplace import MarketplaceJob, Refusal, Withdrawal
from settlement.chain.payouts import Payouts


class JobContract(Protocol):
    """What the marketplaces' generated bindings have in common."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]]
    address: ChecksumAddress

    def complete_session_job(self, *, job_id: int, conversation_cid: str) -> Call[None]: ...
    def trigger_session_timeout(self, job_id: int) -> Call[None]: ...


class Adapter(ABC):
    """Base of the adapters. ``REFUSALS`` maps what a revert is named; what it leaves out is tried again, since
    giving up would turn a node's hiccup into lost money. ``NEEDED`` are the contract's functions that are called."""

    REFUSALS: ClassVar[Mapping[str, Refusal]]
    NEEDED: ClassVar[tuple[str, ...]]

    def __init__(self, contract: JobContract, deployment: Deployment) -> None:
        self._jobs = contract
        self._payouts = Payouts(deployment.host_earnings)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The marketplace and, where it is known, the earnings contract, in lower case."""
        own = self._jobs.address.lower()
        return (own,) if self._payouts.address is None else (own, self._payouts.address)

    @abstractmethod
    def find_jobs(self, client: ChainClient, job_ids: Sequence[int]) -> list[MarketplaceJob | None]:
        """The jobs' rows in the order of the ids, ``None`` for those that the marketplace does not know."""

    def find_job(self, client: ChainClient, job_id: int) -> MarketplaceJob | None:
        """The job's row, or ``None`` if the marketplace does not know it."""
        return self.find_jobs(client, [job_id])[0]

    def meaning_of(self, refusal: str) -> Refusal:
        """By the name of a custom error, or by the reason string."""
        return self.REFUSALS.get(refusal, Refusal.UNEXPLAINED)

    def complete(self, *, job_id: int, reference: str) -> Call[None]:
        """Complete the job; the rest of the deposit goes back."""
        return self._jobs.complete_session_job(job_id=job_id, conversation_cid=reference)

    def timeout(self, *, job_id: int) -> Call[None]:
        """End a job that outlived its duration or its idle time."""
        return self._jobs.trigger_session_timeout(job_id)

    def withdraw(self, *, token: str, amount: int | None) -> Call[None]:
        """Pay the sender ``amount`` base units of a token, or all of them for ``None``."""
        return self._payouts.withdraw(token=token, amount=amount)

    def withdraw_many(self, tokens: Sequence[str]) -> Call[None]:
        """Pay the sender all its earnings in each of the tokens."""
        return self._payouts.withdraw_many(tokens)

    def withdrawals(self, logs: Iterable[Mapping[str, Any]]) -> list[Withdrawal]:
        """The withdrawals among the logs, of every host."""
        return self._payouts.withdrawals(logs)

    def withdrawable(self, client: ChainClient, *, host: str, token: str) -> int:
        """What the host may withdraw of a token, base units."""
        return self._payouts.withdrawable(client, host=host, token=token)

    def needed_selectors(self) -> dict[str, bytes]:
        """The functions that this node calls, by signature."""
        specs = [self._jobs.FUNCTIONS[name] for name in self.NEEDED]
        return {spec.signature: spec.selector for spec in specs}


def values_of(client: ChainClient, calls: Sequence[Call[Any]]) -> list[Any]:
    """The answers of reads that must all succeed. Raises the first that does not."""
    answers: list[Any] = []
    for answer in client.calls(calls):
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers
