"""What the jobs app asks of a marketplace: is this job real, and can it pay this host?

A port: settlement implements it over the chain and the site hands it in, so that this app needs no
web3 and imports nothing above it. Does not decide anything; ``sessions`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class JobStatus(StrEnum):
    """A job's state as its marketplace states it."""

    ACTIVE = "active"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainJob:
    """A job as the chain states it now, and how far this host trusts it.

    ``deposit`` and ``price_per_token`` (for ``price_precision`` tokens) in base units of
    ``payment_token``; ``tokens_used`` and ``token_budget`` in completion token ids; times are the chain's
    own. A first claim of fewer than ``first_claim_tokens`` is refused by the marketplace.
    ``exposure_limit`` and ``exposure_limit_of_all`` are the most that work done and not yet paid may be
    worth, for this job and for all jobs in its ``payment_token``; ``None`` without such a limit.
    """

    deployment: str
    chain_id: int
    job_id: int
    host: str
    depositor: str
    payment_token: str
    deposit: int
    price_per_token: int
    price_precision: int
    tokens_per_second: int
    tokens_used: int
    token_budget: int
    status: JobStatus
    started_at: datetime
    expires_at: datetime
    idle_timeout_seconds: int | None
    chain_time: datetime
    first_claim_tokens: int = 0
    exposure_limit: int | None = None
    exposure_limit_of_all: int | None = None

    @property
    def marketplace(self) -> str:
        """The marketplace's address in lower case; ``deployment`` is named for its chain and for it."""
        return self.deployment.split(":")[1].lower()


class JobSourceUnavailable(Exception):
    """The marketplace could not be asked. Says why; asking again later may help."""


class JobSource(Protocol):
    """A marketplace that can be asked for jobs."""

    @property
    def chain_id(self) -> int: ...

    @property
    def host(self) -> str | None:
        """This host's address in lower case; ``None`` if the node has no key and cannot be paid."""
        ...

    async def find(self, job_id: int) -> ChainJob | None:
        """The job, or ``None`` if there is none of that number. Raises ``JobSourceUnavailable``."""
        ...
