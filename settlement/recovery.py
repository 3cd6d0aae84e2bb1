"""Recovery: what a node that was away, or lost rows, or whose chain lost blocks, has to find out again.

Guarantees that every job of this host which is active on the chain has a session that will end it, that a
session whose job has ended is finished, that leases of dead workers are given back, and that each thing
done is told in one line with its reason. Every step is one that may be repeated; a second run finds
nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from django.db import transaction

from jobs import sessions
from jobs.models import Session, SessionState
from settlement import closing, following, indexer, job_lookup, proving, reorgs, replays
from settlement.chain.marketplace import MarketplaceJob, MarketplaceJobStatus
from settlement.host_chain import HostChain
from settlement.models import ChainCursor, JobScan

logger = logging.getLogger(__name__)

# Ids asked for at once: a page of the host's list of jobs, and the rows of that many jobs.
PAGE = 500
# Jobs that were seen before and are looked at again by a scan that is not complete: a reorg may have
# changed the end of the list.
OVERLAP = 200

_OPEN_STATES = (SessionState.OPEN, SessionState.CLOSING)


def recover(chain: HostChain, *, complete: bool) -> list[str]:
    """Find and repair what is out of step; returns one line for each thing done, and why.

    ``complete`` asks the chain about every open session and every job of the host, for a node that was
    away; otherwise only about the jobs that are new since the last scan. Raises ``ChainUnavailable``.
    """
    lines = list(_repair(chain, complete=complete))
    for line in lines:
        logger.info(line, extra={"event": "recovered"})
    return lines


def _repair(chain: HostChain, *, complete: bool) -> Iterator[str]:
    for checkpoint in proving.give_back_lost(chain):
        yield f"{checkpoint}: sealed again, the worker that proved it ended"
    if complete:
        # The indexer looks only where its cursor's own block is gone.
        yield from _undo_vanished(chain)
    before = _ended_sessions(chain)
    indexer.index_events(chain)
    if chain.host is not None:
        yield from _restore_jobs(chain, host=chain.host, complete=complete)
    if complete:
        yield from _compare_open_sessions(chain)
    followed = following.follow_transactions(chain)
    if followed:
        yield f"{followed} checkpoints moved on to where their transactions are"
    closing.close_due(chain)
    for session in Session.objects.filter(pk__in=_ended_sessions(chain, among=before)):
        yield f"{session}: {session.state}, {session.close_reason}"


def _undo_vanished(chain: HostChain) -> list[str]:
    cursor = ChainCursor.objects.filter(deployment=chain.key).first()
    if cursor is None:
        return []
    since = min(cursor.block_number, chain.client.head().number) - reorgs.DEPTH
    return reorgs.undo_vanished(chain, since=max(0, since))


def _ended_sessions(chain: HostChain, *, among: Iterable[int] | None = None) -> list[int]:
    """Without ``among``, the sessions that are open; with it, those of them that have ended since."""
    mine = Session.objects.with_job().filter(deployment=chain.key)
    if among is None:
        return list(mine.filter(state__in=_OPEN_STATES).values_list("pk", flat=True))
    still = set(mine.filter(state__in=_OPEN_STATES).values_list("pk", flat=True))
    return [pk for pk in among if pk not in still]


def _restore_jobs(chain: HostChain, *, host: str, complete: bool) -> Iterator[str]:
    """Every job of this host that is active on the chain gets a session that will end it."""
    scan, _ = JobScan.objects.get_or_create(deployment=chain.key)
    seen = 0 if complete else max(0, scan.jobs_seen - OVERLAP)
    while job_ids := chain.marketplace.host_job_ids(chain.client, host=host, start=seen, limit=PAGE):
        yield from _restore_page(chain, host=host, job_ids=job_ids)
        seen += len(job_ids)
        if len(job_ids) < PAGE:
            break
    JobScan.objects.filter(pk=scan.pk).update(jobs_seen=seen)


def _restore_page(chain: HostChain, *, host: str, job_ids: Sequence[int]) -> Iterator[str]:
    known = Session.objects.filter(deployment=chain.key, job_id__in=job_ids)
    states = dict(known.values_list("job_id", "state"))
    finished = [job_id for job_id in job_ids if states.get(job_id) not in (None, *_OPEN_STATES)]
    unknown = [job_id for job_id in job_ids if job_id not in states]
    recent = finished[-OVERLAP:]
    jobs = chain.marketplace.find_jobs(chain.client, [*unknown, *recent])
    active = [
        job
        for job in jobs
        if job is not None and job.status is MarketplaceJobStatus.ACTIVE and job.host == host.lower()
    ]
    missing = [job for job in active if job.job_id not in states]
    if missing:
        yield from _restore(chain, missing)
    again = [job.job_id for job in active if job.job_id in states]
    if again:
        rows = known.filter(job_id__in=again)
        if reorgs.reopen(chain, list(rows.values_list("pk", flat=True))):
            yield from (f"job {job_id}: to be ended again, a reorg took its end" for job_id in again)


def _restore(chain: HostChain, jobs: Sequence[MarketplaceJob]) -> Iterator[str]:
    chain_time = chain.client.head().time
    with transaction.atomic():
        made = [
            job
            for job in jobs
            if sessions.restore_job_session(job_lookup.chain_job(chain, job, chain_time=chain_time))[1]
        ]
    for job in made:
        claimed = f", {job.tokens_used} tokens claimed by an earlier life of this host" if job.tokens_used else ""
        yield f"job {job.job_id}: session restored, it is active on the chain and was not in this ledger{claimed}"


def _compare_open_sessions(chain: HostChain) -> Iterator[str]:
    """Sessions that are open here and whose job has ended on the chain: their end is looked for."""
    pending = list(
        Session.objects.with_job()
        .filter(deployment=chain.key, state__in=_OPEN_STATES)
        .exclude(closing__ended_status__gt="")
        .order_by("pk")
        .values_list("pk", "job_id", "job_started_at")
    )
    missed: list[datetime] = []
    for start in range(0, len(pending), PAGE):
        part = pending[start : start + PAGE]
        jobs = chain.marketplace.find_jobs(chain.client, [job_id for _, job_id, _ in part if job_id is not None])
        for (session_id, job_id, started_at), job in zip(part, jobs, strict=True):
            if job is None or job.status is MarketplaceJobStatus.ACTIVE:
                continue
            if started_at is not None:
                missed.append(started_at)
            if sessions.close_session(session_id, reason=f"job {job.status} on the chain"):
                yield f"job {job_id}: session closed, the job is {job.status} on the chain"
    if missed:
        # The cursor has passed their events, or those are not final yet.
        head = chain.client.head().number
        indexer.apply_from(chain, start=replays.first_block_since(chain.client, min(missed), head=head))
