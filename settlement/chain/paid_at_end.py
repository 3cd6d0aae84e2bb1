"""What the marketplaces that pay at the end of a job have in common: how their rows and events are read.

Guarantees one ``EndedJob`` for each end: such a contract announces a time-out as a completion, too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from eth_utils.address import to_checksum_address

from settlement.chain.adapter import Adapter
from settlement.chain.client import CallReverted, ChainClient
from settlement.chain.contracts import Call, ContractEvent
from settlement.chain.event_logs import index_of, order_of, position_of, topic_of
from settlement.chain.marketplace import NATIVE_COIN, AcceptedClaim, EndedJob, MarketplaceJobStatus

NO_ADDRESS = to_checksum_address(NATIVE_COIN)

_ACTIVE, _TIMED_OUT = 0, 2


class PaidAtEnd(Adapter):
    """Base of their adapters: nobody is paid before the job ends, and there is no closing claim."""

    CLAIMED: ClassVar[type[ContractEvent]]
    COMPLETED: ClassVar[type[ContractEvent]]
    TIMED_OUT: ClassVar[type[ContractEvent]]

    @abstractmethod
    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]:
        """Claim ``tokens`` since the last claim."""

    @abstractmethod
    def host_session(self, *, host: str, index: int) -> Call[int]:
        """Asks for the id of the host's job of that number; refused beyond the last."""

    def closing_claim(self, *, job_id: int, tokens: int, proof: bytes, reference: str) -> Call[None]:
        """There is none: an ordinary claim, after which the job has still to be completed."""
        return self.claim(job_id=job_id, tokens=tokens, proof=proof)

    def host_job_ids(self, client: ChainClient, *, host: str, start: int, limit: int) -> list[int]:
        """Up to ``limit`` ids of the host's jobs, oldest first, from the ``start``-th on."""
        indexes = range(start, start + limit)
        found: list[int] = []
        for answer in client.calls([self.host_session(host=host, index=index) for index in indexes]):
            if isinstance(answer, CallReverted):
                # The end of the contract's list.
                break
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found

    def accepted_claims(self, logs: Iterable[Mapping[str, Any]]) -> list[AcceptedClaim]:
        """The claims among the logs, none of them paid yet."""
        return [
            _claim_without_payment(self.CLAIMED.decode(log))
            for log in sorted(logs, key=index_of)
            if str(log["address"]).lower() == self.addresses[0] and topic_of(log) == self.CLAIMED.topic
        ]

    def ended_jobs(self, logs: Iterable[Mapping[str, Any]]) -> list[EndedJob]:
        """The jobs that ended, each once, with what they paid: a time-out's completion is the same end."""
        found: dict[int, EndedJob] = {}
        for log in sorted(logs, key=order_of):
            if str(log["address"]).lower() != self.addresses[0]:
                continue
            if topic_of(log) == self.COMPLETED.topic:
                ended = _ended(self.COMPLETED.decode(log), status=MarketplaceJobStatus.COMPLETED)
                found[ended.job_id] = ended
            elif topic_of(log) == self.TIMED_OUT.topic:
                late = _ended(self.TIMED_OUT.decode(log), status=MarketplaceJobStatus.TIMED_OUT)
                found[late.job_id] = replace(found.get(late.job_id, late), status=late.status)
        return list(found.values())


def status_of(number: int) -> MarketplaceJobStatus:
    """Disputed, abandoned and cancelled are numbers of the old contract that end a job, too."""
    if number == _ACTIVE:
        return MarketplaceJobStatus.ACTIVE
    return MarketplaceJobStatus.TIMED_OUT if number == _TIMED_OUT else MarketplaceJobStatus.COMPLETED


def paid_to_treasury(status: MarketplaceJobStatus, *, deposit: int, host: int, refund: int) -> int:
    """The rest of an ended job's deposit, base units: the row does not state the treasury's part."""
    return 0 if status is MarketplaceJobStatus.ACTIVE else deposit - host - refund


def _claim_without_payment(log: Any) -> AcceptedClaim:
    """A claim as its own event states it: the token and the money are known when the job ends."""
    return AcceptedClaim(
        job_id=log.event.job_id,
        host=log.event.host.lower(),
        tokens=log.event.tokens_claimed,
        proof_hash="0x" + log.event.proof_hash.hex(),
        token=NATIVE_COIN,
        host_amount=0,
        treasury_amount=0,
        position=position_of(log),
        host_position=None,
        treasury_position=None,
    )


def _ended(log: Any, *, status: MarketplaceJobStatus) -> EndedJob:
    return EndedJob(
        job_id=log.event.job_id,
        status=status,
        tokens=getattr(log.event, "total_tokens_used", None),
        host_amount=log.event.host_earnings,
        refund=log.event.user_refund,
        settles=True,
        position=position_of(log),
    )
