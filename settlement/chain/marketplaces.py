"""One adapter per marketplace generation: what can be called, and what its events say.

Guarantees that the domain never names a generation: it asks an adapter for capabilities, calls and
decoded events. Adding a generation is adding a class here. Does not send anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from eth_utils.address import to_checksum_address

from settlement.chain.bindings import HostEarnings, JobMarketplace, errors, events
from settlement.chain.bindings.structs import SessionStatus
from settlement.chain.client import CallReverted, ChainClient
from settlement.chain.contracts import Call
from settlement.chain.deployment import HOST_GENERATION, Deployment
from settlement.chain.reverts import CustomRevert

NATIVE_COIN = "0x" + "00" * 20


class UnsupportedGeneration(Exception):
    """The deployment names a marketplace generation that this release has no adapter for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a generation can do. ``minimum_claim`` in tokens."""

    pays_on_claim: bool
    closing_claim: bool
    signature_proof: bool
    minimum_claim: int
    price_precision: int


class MarketplaceJobStatus(StrEnum):
    ACTIVE = "active"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketplaceJob:
    """A job's row on the chain. Amounts in base units, addresses in lower case, times of the chain."""

    job_id: int
    requester: str
    host: str
    payment_token: str
    deposit: int
    price_per_token: int
    tokens_used: int
    status: MarketplaceJobStatus
    started_at: datetime
    last_proof_at: datetime
    expires_at: datetime
    idle_timeout_seconds: int | None
    paid_to_host: int
    paid_to_treasury: int
    refunded: int

    @property
    def token_budget(self) -> int:
        """How many tokens the whole deposit pays for."""
        return self.deposit // self.price_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the marketplace demands of every job."""

    fee_basis_points: int
    dispute_window: timedelta
    tokens_per_second: int
    treasury: str
    minimum_claim: int

    def allowed_tokens(self, *, since: datetime, now: datetime) -> int:
        """How many tokens the rate rule lets a host claim at ``now`` after a claim at ``since``."""
        return max(0, 2 * self.tokens_per_second * int((now - since).total_seconds()))

    def earliest_claim(self, tokens: int, *, since: datetime) -> datetime:
        """When the rate rule first allows to claim ``tokens`` after a claim at ``since``."""
        seconds = -(-tokens // (2 * self.tokens_per_second))
        return since + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """Where in the chain an event stands."""

    transaction_hash: str
    log_index: int
    block_number: int
    block_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedClaim:
    """A claim that the marketplace accepted, with what it paid, out of one transaction's events."""

    job_id: int
    host: str
    tokens: int
    proof_hash: str
    token: str
    host_amount: int
    treasury_amount: int
    position: LogPosition
    host_position: LogPosition | None
    treasury_position: LogPosition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A job that ended. ``refund`` in base units of its token."""

    job_id: int
    status: MarketplaceJobStatus
    tokens: int
    refund: int
    position: LogPosition


class Marketplace(Protocol):
    """A marketplace as the domain uses it."""

    capabilities: Capabilities

    @property
    def addresses(self) -> tuple[str, ...]:
        """The contracts whose events matter."""
        ...

    def terms(self, client: ChainClient) -> Terms: ...
    def find_job(self, client: ChainClient, job_id: int) -> MarketplaceJob | None: ...
    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]: ...
    def closing_claim(self, *, job_id: int, tokens: int, proof: bytes, reference: str) -> Call[None]: ...
    def complete(self, *, job_id: int, reference: str) -> Call[None]: ...
    def accepted_claims(self, logs: Iterable[Mapping[str, Any]]) -> list[AcceptedClaim]: ...
    def ended_jobs(self, logs: Iterable[Mapping[str, Any]]) -> list[EndedJob]: ...
    def withdrawable(self, client: ChainClient, *, host: str, token: str) -> int: ...
    def needed_selectors(self) -> dict[str, bytes]: ...


class EscrowMarketplace:
    """The marketplace of this repository: pays on each claim, closing claim of one token or more."""

    generation = HOST_GENERATION
    capabilities = Capabilities(
        pays_on_claim=True, closing_claim=True, signature_proof=False, minimum_claim=100, price_precision=1
    )

    def __init__(self, deployment: Deployment) -> None:
        if deployment.host_earnings is None:
            raise UnsupportedGeneration("The deployment names no HostEarnings contract (CONTRACT_HOST_EARNINGS).")
        self._contract = JobMarketplace(deployment.job_marketplace)
        self._earnings = deployment.host_earnings.lower()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The marketplace and the earnings contract, in lower case."""
        return (self._contract.address.lower(), self._earnings)

    def terms(self, client: ChainClient) -> Terms:
        """The marketplace's settings as the chain states them now."""
        contract = self._contract
        return Terms(
            fee_basis_points=client.call(contract.fee_basis_points()),
            dispute_window=timedelta(seconds=client.call(contract.dispute_window())),
            tokens_per_second=client.call(contract.expected_tokens_per_second()),
            treasury=client.call(contract.treasury()).lower(),
            minimum_claim=client.call(contract.min_proven_tokens()),
        )

    def find_job(self, client: ChainClient, job_id: int) -> MarketplaceJob | None:
        """The job's row, or ``None`` if the marketplace does not know it."""
        try:
            row = client.call(self._contract.session_jobs(job_id))
        except CallReverted as reverted:
            revert = reverted.revert
            if isinstance(revert, CustomRevert) and isinstance(revert.error, errors.UnknownJob):
                return None
            raise
        status = {
            SessionStatus.ACTIVE: MarketplaceJobStatus.ACTIVE,
            SessionStatus.COMPLETED: MarketplaceJobStatus.COMPLETED,
            SessionStatus.TIMED_OUT: MarketplaceJobStatus.TIMED_OUT,
        }[SessionStatus(row.status)]
        started = datetime.fromtimestamp(row.start_time, UTC)
        return MarketplaceJob(
            job_id=row.id,
            requester=row.requester.lower(),
            host=row.host.lower(),
            payment_token=row.payment_token.lower(),
            deposit=row.deposit,
            price_per_token=row.price_per_token,
            tokens_used=row.tokens_used,
            status=status,
            started_at=started,
            last_proof_at=datetime.fromtimestamp(row.last_proof_time, UTC),
            expires_at=started + timedelta(seconds=row.max_duration),
            idle_timeout_seconds=row.idle_timeout,
            paid_to_host=row.withdrawn_by_host,
            paid_to_treasury=row.paid_to_treasury,
            refunded=row.refunded_to_user,
        )

    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]:
        """Claim ``tokens`` since the last claim."""
        return self._contract.submit_proof_of_work(job_id=job_id, tokens_claimed=tokens, proof=proof)

    def closing_claim(self, *, job_id: int, tokens: int, proof: bytes, reference: str) -> Call[None]:
        """Claim the last tokens and complete the job in one transaction."""
        return self._contract.complete_session_job_with_proof(
            job_id=job_id, tokens_claimed=tokens, proof=proof, conversation_cid=reference
        )

    def complete(self, *, job_id: int, reference: str) -> Call[None]:
        """Complete the job; the rest of the deposit goes back."""
        return self._contract.complete_session_job(job_id=job_id, conversation_cid=reference)

    def accepted_claims(self, logs: Iterable[Mapping[str, Any]]) -> list[AcceptedClaim]:
        """The claims among the logs of *one* transaction, each with the payments that follow it."""
        found: list[AcceptedClaim] = []
        for log in sorted(logs, key=_log_index):
            topic = _topic(log)
            ours = str(log["address"]).lower()
            if ours == self.addresses[0] and topic == events.ProofOfWork.topic:
                found.append(_claim_of(events.ProofOfWork.decode(log)))
            elif not found:
                continue
            elif ours == self.addresses[0] and topic == events.TreasuryCredited.topic:
                credit = events.TreasuryCredited.decode(log)
                found[-1] = replace(
                    found[-1],
                    token=credit.event.token.lower(),
                    treasury_amount=credit.event.amount,
                    treasury_position=_position(credit),
                )
            elif ours == self._earnings and topic == events.EarningsCredited.topic:
                earned = events.EarningsCredited.decode(log)
                found[-1] = replace(
                    found[-1],
                    token=earned.event.token.lower(),
                    host_amount=earned.event.amount,
                    host_position=_position(earned),
                )
        return found

    def ended_jobs(self, logs: Iterable[Mapping[str, Any]]) -> list[EndedJob]:
        """The jobs that the logs say have ended."""
        ended: list[EndedJob] = []
        for log in logs:
            if str(log["address"]).lower() != self.addresses[0]:
                continue
            topic = _topic(log)
            if topic == events.SessionCompleted.topic:
                completed = events.SessionCompleted.decode(log)
                ended.append(_ended(completed, status=MarketplaceJobStatus.COMPLETED))
            elif topic == events.SessionTimedOut.topic:
                timed_out = events.SessionTimedOut.decode(log)
                ended.append(_ended(timed_out, status=MarketplaceJobStatus.TIMED_OUT))
        return ended

    def withdrawable(self, client: ChainClient, *, host: str, token: str) -> int:
        """What the host may withdraw of a token, base units."""
        contract = HostEarnings(self._earnings)
        return client.call(contract.get_balance(host=to_checksum_address(host), token=to_checksum_address(token)))

    def needed_selectors(self) -> dict[str, bytes]:
        """The functions that this node calls, by signature."""
        names = (
            "sessionJobs",
            "submitProofOfWork",
            "completeSessionJobWithProof",
            "completeSessionJob",
            "feeBasisPoints",
            "disputeWindow",
            "expectedTokensPerSecond",
            "treasury",
            "MIN_PROVEN_TOKENS",
        )
        specs = [self._contract.FUNCTIONS[name] for name in names]
        return {spec.signature: spec.selector for spec in specs}


_GENERATIONS = {EscrowMarketplace.generation: EscrowMarketplace}


def marketplace_of(deployment: Deployment) -> Marketplace:
    """The adapter of the deployment's generation. Raises ``UnsupportedGeneration``."""
    try:
        return _GENERATIONS[deployment.generation](deployment)
    except KeyError:
        raise UnsupportedGeneration(
            f"The deployment on chain {deployment.chain_id} is of generation {deployment.generation!r}; this "
            f"release settles with {', '.join(_GENERATIONS)}."
        ) from None


def _topic(log: Mapping[str, Any]) -> bytes:
    topics = log["topics"]
    return bytes.fromhex(str(topics[0]).removeprefix("0x")) if topics else b""


def _log_index(log: Mapping[str, Any]) -> int:
    return int(str(log["logIndex"]), 16)


def _position(log: Any) -> LogPosition:
    return LogPosition(
        transaction_hash="0x" + log.transaction_hash.hex(),
        log_index=log.log_index,
        block_number=log.block_number,
        block_hash="0x" + log.block_hash.hex(),
    )


def _claim_of(log: Any) -> AcceptedClaim:
    return AcceptedClaim(
        job_id=log.event.job_id,
        host=log.event.host.lower(),
        tokens=log.event.tokens_claimed,
        proof_hash="0x" + log.event.proof_hash.hex(),
        token=NATIVE_COIN,
        host_amount=0,
        treasury_amount=0,
        position=_position(log),
        host_position=None,
        treasury_position=None,
    )


def _ended(log: Any, *, status: MarketplaceJobStatus) -> EndedJob:
    return EndedJob(
        job_id=log.event.job_id,
        status=status,
        tokens=log.event.total_tokens_used,
        refund=log.event.user_refund,
        position=_position(log),
    )
