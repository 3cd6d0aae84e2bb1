"""Jobs as the chain states them, for the jobs app (implements its ``JobSource``).

Asks the chain at every prompt, so that a job that ended a second ago is refused. Caches nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime

from django.conf import settings

from jobs.job_source import ChainJob, JobSourceUnavailable, JobStatus
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from settlement.chain.marketplace import NATIVE_COIN, MarketplaceJob, UnsupportedGeneration
from settlement.host_chain import HostChain, NoDeployment, host_chain

_FAILURES = (ChainUnavailable, NodeRefused, CallReverted, CodecError, UnsupportedGeneration, NoDeployment)


class ChainJobSource:
    """Finds jobs on the configured chain."""

    @property
    def chain_id(self) -> int:
        """The configured chain's id."""
        chain_id: int = settings.ENVIRONMENT.chain_id
        return chain_id

    @property
    def host(self) -> str | None:
        """This host's address in lower case."""
        return host_chain().host

    async def find(self, job_id: int) -> ChainJob | None:
        """The job, or ``None``. Raises ``JobSourceUnavailable``."""
        try:
            return await asyncio.to_thread(self._find, job_id)
        except _FAILURES as failure:
            raise JobSourceUnavailable(f"{failure}.") from failure

    def _find(self, job_id: int) -> ChainJob | None:
        chain = host_chain()
        job = chain.marketplace.find_job(chain.client, job_id)
        if job is None:
            return None
        return chain_job(chain, job, chain_time=chain.client.head().time)


def chain_job(chain: HostChain, job: MarketplaceJob, *, chain_time: datetime) -> ChainJob:
    """A marketplace's row as the jobs app wants it; ``chain_time`` is the newest block's."""
    environment = settings.ENVIRONMENT
    return ChainJob(
        deployment=chain.key,
        chain_id=chain.deployment.chain_id,
        job_id=job.job_id,
        host=job.host,
        depositor=job.requester,
        payment_token=job.payment_token,
        deposit=job.deposit,
        price_per_token=job.price_per_token,
        price_precision=job.price_precision,
        tokens_per_second=job.tokens_per_second,
        tokens_used=job.tokens_used,
        token_budget=job.token_budget,
        status=JobStatus(job.status.value),
        started_at=job.started_at,
        expires_at=job.expires_at,
        idle_timeout_seconds=job.idle_timeout_seconds,
        chain_time=chain_time,
        first_claim_tokens=_first_claim_tokens(chain, job),
        exposure_limit=_limit_of(environment.exposure_per_job, job.payment_token, chain=chain),
        exposure_limit_of_all=_limit_of(environment.exposure_total, job.payment_token, chain=chain),
    )


def _first_claim_tokens(chain: HostChain, job: MarketplaceJob) -> int:
    """Below how many tokens nothing of the job can be claimed; a closing claim may be of any size."""
    capabilities = chain.marketplace.capabilities
    return (
        job.first_claim_tokens
        if capabilities.closing_claim
        else max(capabilities.minimum_claim, job.first_claim_tokens)
    )


def _limit_of(limits: Mapping[str, int], token: str, *, chain: HostChain) -> int | None:
    """The operator's limit for the kind of money that ``token`` is; ``None`` for one without."""
    if token == NATIVE_COIN:
        return limits.get("native")
    usdc = chain.deployment.usdc
    return limits.get("usdc") if usdc is not None and token == usdc.lower() else None
