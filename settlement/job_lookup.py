"""Jobs as the chain states them, for the jobs app (implements its ``JobSource``).

Asks the chain at every prompt, so that a job that ended a second ago is refused. Caches nothing.
"""

from __future__ import annotations

import asyncio

from django.conf import settings

from jobs.job_source import ChainJob, JobSourceUnavailable, JobStatus
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from settlement.chain.marketplaces import UnsupportedGeneration
from settlement.host_chain import NoDeployment, host_chain

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
        head = chain.client.head()
        return ChainJob(
            deployment=chain.key,
            chain_id=self.chain_id,
            job_id=job.job_id,
            host=job.host,
            depositor=job.requester,
            payment_token=job.payment_token,
            deposit=job.deposit,
            price_per_token=job.price_per_token,
            tokens_used=job.tokens_used,
            token_budget=job.token_budget,
            status=JobStatus(job.status.value),
            started_at=job.started_at,
            expires_at=job.expires_at,
            idle_timeout_seconds=job.idle_timeout_seconds,
            chain_time=head.time,
        )
