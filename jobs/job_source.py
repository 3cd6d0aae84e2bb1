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
    """A job as the chain states it now.

    ``deposit`` and ``price_per_token`` in base units of ``payment_token``; ``tokens_used`` and
    ``token_budget`` in completion token ids; times are the chain's own.
    """

    deployment: str
    chain_id: int
    job_id: int
    host: str
    depositor: str
    payment_token: str
    deposit: int
    price_per_token: int
    tokens_used: int
    token_budget: int
    status: JobStatus
    started_at: datetime
    expires_at: datetime
    idle_timeout_seconds: int | None
    chain_time: datetime


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
