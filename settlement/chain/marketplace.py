"""A marketplace as the domain sees it: what can be asked and called, and what its events mean.

Guarantees that the domain never names a generation: it asks an adapter (``marketplaces`` knows which)
for capabilities, calls and decoded events. Values only; talks to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call

NATIVE_COIN = "0x" + "00" * 20


class UnsupportedGeneration(Exception):
    """The deployment names a marketplace generation that this release has no adapter for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a generation can do. ``minimum_claim`` in tokens; prices are per ``price_precision`` tokens.

    With ``pays_on_claim`` a claim's own transaction credits host and treasury; without it, the end of
    the job does, for all its claims together.
    """

    pays_on_claim: bool
    closing_claim: bool
    signature_proof: bool
    minimum_claim: int
    price_precision: int


class Refusal(StrEnum):
    """What a contract's refusal of a claim means for the claim."""

    PERMANENT = "permanent"  # no waiting changes it
    TOO_FAST = "too_fast"  # the rate rule: later, the same claim is accepted
    DISPUTE_WINDOW = "dispute_window"  # the host may not end the job yet
    ALREADY_CLAIMED = "already_claimed"  # this very proof was accepted before
    UNEXPLAINED = "unexplained"  # tried again, later each time


class MarketplaceJobStatus(StrEnum):
    ACTIVE = "active"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketplaceJob:
    """A job's row on the chain. Amounts in base units, addresses in lower case, times of the chain.

    ``price_per_token`` is per ``price_precision`` tokens; ``tokens_per_second`` is the rate that the
    marketplace expects of this job's host. A first claim of fewer than ``first_claim_tokens`` is refused.
    ``dispute_window_from`` is when the dispute window begins, ``None`` where that is the job's start.
    """

    job_id: int
    requester: str
    host: str
    payment_token: str
    deposit: int
    price_per_token: int
    price_precision: int
    tokens_per_second: int
    tokens_used: int
    status: MarketplaceJobStatus
    started_at: datetime
    last_proof_at: datetime
    expires_at: datetime
    idle_timeout_seconds: int | None
    paid_to_host: int
    paid_to_treasury: int
    refunded: int
    first_claim_tokens: int = 0
    dispute_window_from: datetime | None = None

    @property
    def disputed_from(self) -> datetime:
        """From when the host waits for the dispute window before it may complete the job."""
        return self.dispute_window_from or self.started_at

    @property
    def token_budget(self) -> int:
        """How many tokens the whole deposit pays for."""
        return self.deposit * self.price_precision // self.price_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the marketplace demands of every job."""

    fee_basis_points: int
    dispute_window: timedelta
    tokens_per_second: int
    treasury: str
    minimum_claim: int

    def allowed_tokens(self, *, since: datetime, now: datetime, rate: int | None = None) -> int:
        """How many tokens the rate rule lets a host claim at ``now`` after a claim at ``since``.

        ``rate`` is the job's own in tokens per second, where it has one.
        """
        return max(0, 2 * (rate or self.tokens_per_second) * int((now - since).total_seconds()))

    def earliest_claim(self, tokens: int, *, since: datetime, rate: int | None = None) -> datetime:
        """When the rate rule first allows to claim ``tokens`` after a claim at ``since``."""
        seconds = -(-tokens // (2 * (rate or self.tokens_per_second)))
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
    """A job that ended. Amounts in base units of its token.

    ``host_amount`` is all that the host was paid for the job. ``settles`` says that it was paid by this
    event, in a generation that does not pay on each claim. ``tokens`` is ``None`` where the event does
    not state them.
    """

    job_id: int
    status: MarketplaceJobStatus
    tokens: int | None
    host_amount: int
    refund: int
    settles: bool
    position: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """Earnings that a host took out. ``amount`` in base units of ``token``, ``remaining`` what it left."""

    host: str
    token: str
    amount: int
    remaining: int
    position: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """What a depositor asks for. ``deposit`` in base units of ``token``, an ERC-20 that it has approved.

    ``price_per_token`` is per ``price_precision`` tokens, ``claim_interval`` in tokens; ``model_id`` counts
    where the generation's jobs name their model.
    """

    host: str
    token: str
    deposit: int
    price_per_token: int
    max_duration: timedelta
    claim_interval: int
    model_id: bytes


class Marketplace(Protocol):
    """A marketplace as the domain uses it."""

    capabilities: Capabilities

    @property
    def addresses(self) -> tuple[str, ...]:
        """The contracts whose events matter."""
        ...

    def terms(self, client: ChainClient) -> Terms: ...
    def find_job(self, client: ChainClient, job_id: int) -> MarketplaceJob | None:
        """The job's row, or ``None`` if the marketplace does not know it."""
        ...

    def find_jobs(self, client: ChainClient, job_ids: Sequence[int]) -> list[MarketplaceJob | None]:
        """The jobs' rows in the order of the ids, in as few requests as the node allows."""
        ...

    def host_job_ids(self, client: ChainClient, *, host: str, start: int, limit: int) -> list[int]:
        """Up to ``limit`` ids of the host's jobs, oldest first, from the ``start``-th on."""
        ...

    def accepts_prover(self, client: ChainClient, *, selector: bytes) -> bool:
        """Whether claims with proofs of that prover are accepted."""
        ...

    def claim_hash(self, proof: bytes) -> str:
        """The hash by which the marketplace's event names a proof."""
        ...

    def meaning_of(self, refusal: str) -> Refusal:
        """What a revert of that name (custom error or reason string) means for a claim."""
        ...

    def open_job(self, order: JobOrder) -> Call[int]:
        """What the depositor calls. The transaction's ``SessionJobCreated`` names the job."""
        ...

    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]: ...
    def closing_claim(self, *, job_id: int, tokens: int, proof: bytes, reference: str) -> Call[None]: ...
    def complete(self, *, job_id: int, reference: str) -> Call[None]: ...
    def timeout(self, *, job_id: int) -> Call[None]:
        """End a job that outlived its duration or its idle time; anyone may."""
        ...

    def withdraw(self, *, token: str, amount: int | None) -> Call[None]:
        """Pay the sender its earnings in a token: ``amount`` base units, or all of them for ``None``."""
        ...

    def withdraw_many(self, tokens: Sequence[str]) -> Call[None]:
        """Pay the sender all its earnings in each of the tokens."""
        ...

    def accepted_claims(self, logs: Iterable[Mapping[str, Any]]) -> list[AcceptedClaim]: ...
    def ended_jobs(self, logs: Iterable[Mapping[str, Any]]) -> list[EndedJob]: ...
    def withdrawals(self, logs: Iterable[Mapping[str, Any]]) -> list[Withdrawal]:
        """The withdrawals among the logs, of every host."""
        ...

    def withdrawable(self, client: ChainClient, *, host: str, token: str) -> int: ...
    def needed_selectors(self) -> dict[str, bytes]: ...
