"""Sessions: who may generate on which job, when a session ends, and what ended it.

Guarantees that a prompt is refused before a token is generated unless its job exists, is active,
names this host, has deposit left and has not run out; that a dropped socket ends a session only
after a grace period without any other socket; and that a closed session stays closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from jobs.job_source import ChainJob, JobStatus
from jobs.models import Session, SessionState, SocketPresence
from jobs.protocol import BillingNote, RequestError, SessionReference

# A presence is refreshed every third of this; an older one belongs to a process that died.
PRESENCE_LIFETIME = timedelta(seconds=30)

# Before the chain lets anybody time a job out, its session is closed so that the last claim is made.
CLOSE_BEFORE_TIMEOUT = timedelta(seconds=60)

_MAX_TOKEN_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """A session that may generate: its row id, what is left of its deposit, and the billing note.

    ``tokens_left`` is in completion token ids, ``None`` where no deposit limits the session.
    """

    id: int
    tokens_left: int | None
    billing: BillingNote


def check_payable(job: ChainJob, *, host: str | None) -> None:
    """Raise ``RequestError`` unless ``job`` can pay this host for another token."""
    if host is None:
        raise RequestError(
            code="host_cannot_claim",
            message="This node has no key and cannot claim payment for a job. Ask its operator to set HOST_KEYSTORE.",
            status=503,
        )
    if job.host.lower() != host.lower():
        raise RequestError(
            code="job_not_assigned",
            message=f"Job {job.job_id} is assigned to host {job.host}, not to this host ({host}). "
            "Send the prompt to that host, or open a job for this one.",
            status=403,
            details={"job_id": str(job.job_id), "assigned_host": job.host},
        )
    if job.status is not JobStatus.ACTIVE:
        raise RequestError(
            code="job_ended",
            message=f"Job {job.job_id} has ended on the chain ({job.status}). Open a new job.",
            status=409,
            details={"job_id": str(job.job_id), "status": str(job.status)},
        )
    if job.chain_time >= job.expires_at:
        raise RequestError(
            code="job_expired",
            message=f"Job {job.job_id} ran out of time at {job.expires_at.isoformat()}. Open a new job.",
            status=409,
            details={"job_id": str(job.job_id)},
        )
    if job.tokens_used >= job.token_budget:
        raise _exhausted(job.job_id)


def _exhausted(job_id: int) -> RequestError:
    return RequestError(
        code="deposit_exhausted",
        message=f"The deposit of job {job_id} is used up. Open a new job with a deposit.",
        status=402,
        details={"job_id": str(job_id)},
    )


def open_job_session(job: ChainJob, *, reference: SessionReference) -> OpenedSession:
    """The session of ``job``, made at its first prompt and kept from then on. Raises ``RequestError``.

    The caller has checked the job (``check_payable``); here the node's own count is checked too,
    which is ahead of the chain's by what is not claimed yet.
    """
    now = timezone.now()
    budget = min(job.token_budget, _MAX_TOKEN_COUNT)
    with transaction.atomic():
        session, _ = Session.objects.get_or_create(
            deployment=job.deployment,
            job_id=job.job_id,
            defaults={
                "client_session_id": reference.session_id,
                "host": job.host,
                "depositor": job.depositor,
                "payment_token": job.payment_token,
                "deposit": job.deposit,
                "price_per_token": job.price_per_token,
                "token_budget": budget,
                "job_started_at": job.started_at,
                "job_expires_at": job.expires_at,
                "idle_timeout_seconds": job.idle_timeout_seconds,
                # Tokens that an earlier life of this host claimed and whose rows are gone.
                "tokens_inherited": job.tokens_used,
                "tokens_tracked": job.tokens_used,
                "tokens_sealed": job.tokens_used,
                "tokens_claimed": job.tokens_used,
                "last_activity_at": now,
            },
        )
        if session.state != SessionState.OPEN:
            raise RequestError(
                code="session_closed",
                message=f"The session of job {job.job_id} is closed ({session.close_reason or session.state}). "
                "Open a new job.",
                status=409,
                details={"job_id": str(job.job_id)},
            )
        if not session.tokens_left:
            raise _exhausted(job.job_id)
        Session.objects.filter(pk=session.pk).update(last_activity_at=now)
    return OpenedSession(
        id=session.pk,
        tokens_left=session.tokens_left,
        billing=BillingNote(
            job_id=job.job_id,
            claimable=True,
            reason="job",
            message=f"Counted for job {job.job_id}; claimed from its deposit in checkpoints.",
        ),
    )


def open_unpaid_session(reference: SessionReference, *, chain_id: int) -> OpenedSession:
    """A session that no deposit pays for. Its tokens are counted, but can never be claimed."""
    if reference.job_id is None:
        reason, message = "no_job", "The request names no job, so nothing is claimed for it."
    else:
        reason = "no_such_job"
        message = f"Job {reference.job_id} does not exist on chain {chain_id}, so nothing is claimed for it."
    now = timezone.now()
    with transaction.atomic():
        session = None
        if reference.session_id:
            session = Session.objects.open().filter(job_id__isnull=True, client_session_id=reference.session_id).first()
        if session is None:
            session = Session.objects.create(client_session_id=reference.session_id, last_activity_at=now)
        else:
            Session.objects.filter(pk=session.pk).update(last_activity_at=now)
    billing = BillingNote(job_id=reference.job_id, claimable=False, reason=reason, message=message)
    return OpenedSession(id=session.pk, tokens_left=None, billing=billing)


def attach_socket(session_id: int, *, connection_id: UUID) -> None:
    """Bind a WebSocket to a session: while one is bound, the session does not end by itself."""
    now = timezone.now()
    with transaction.atomic():
        SocketPresence.objects.update_or_create(
            session_id=session_id, connection_id=connection_id, defaults={"seen_at": now}
        )
        Session.objects.filter(pk=session_id).update(last_activity_at=now, had_socket=True)


def refresh_socket(connection_id: UUID) -> None:
    """Say that the WebSocket is still there."""
    SocketPresence.objects.filter(connection_id=connection_id).update(seen_at=timezone.now())


def detach_socket(connection_id: UUID) -> None:
    """The WebSocket is gone: the grace period of its sessions starts now."""
    with transaction.atomic():
        sessions = list(SocketPresence.objects.filter(connection_id=connection_id).values_list("session_id", flat=True))
        SocketPresence.objects.filter(connection_id=connection_id).delete()
        Session.objects.filter(pk__in=sessions).update(last_activity_at=timezone.now())


def close_session(session_id: int, *, reason: str) -> bool:
    """End a session: no further prompts, leftovers are claimed. ``False`` if it was not open.

    Without a job there is nothing left to be done for it, so it is complete at once.
    """
    open_one = Session.objects.filter(pk=session_id, state=SessionState.OPEN)
    ended = {"close_reason": reason, "closed_at": timezone.now()}
    with transaction.atomic():
        closing = open_one.with_job().update(state=SessionState.CLOSING, **ended)
        completed = open_one.filter(job_id__isnull=True).update(state=SessionState.COMPLETED, **ended)
    return bool(closing or completed)


def finish_session(session_id: int, *, state: SessionState, reason: str) -> bool:
    """The job has ended on the chain. ``False`` if that was known already."""
    ended = (SessionState.COMPLETED, SessionState.ENDED_ON_CHAIN)
    changed = Session.objects.filter(pk=session_id).exclude(state__in=ended).update(state=state)
    Session.objects.filter(pk=session_id, close_reason="").update(close_reason=reason)
    Session.objects.filter(pk=session_id, closed_at__isnull=True).update(closed_at=timezone.now())
    return bool(changed)


def close_due_sessions(*, now: datetime, grace: timedelta, idle: timedelta) -> list[int]:
    """Close sessions whose client is gone or whose job is about to run out; returns their ids.

    ``grace`` applies after the last socket of a session dropped, ``idle`` to sessions that never
    had one (HTTP only). A job's own idle time-out is stricter than either where it is shorter.
    """
    SocketPresence.objects.filter(seen_at__lt=now - PRESENCE_LIFETIME).delete()
    sockets = SocketPresence.objects.filter(session_id=OuterRef("pk"))
    quiet = Session.objects.open().filter(~Exists(sockets))
    dropped = quiet.filter(had_socket=True, last_activity_at__lte=now - grace)
    idled = quiet.filter(had_socket=False, last_activity_at__lte=now - idle)
    running_out = Session.objects.open().with_job().filter(job_expires_at__lte=now + CLOSE_BEFORE_TIMEOUT)
    closed = _close_all(running_out.values_list("pk", flat=True), reason="job about to expire")
    closed += _close_all(dropped.values_list("pk", flat=True), reason="client disconnected")
    closed += _close_all(idled.values_list("pk", flat=True), reason="idle")
    return closed + _close_all(_about_to_idle_out(now=now), reason="chain idle time-out near")


def _about_to_idle_out(*, now: datetime) -> list[int]:
    """Sessions with so old a last claim that the contract soon lets anybody time the job out."""
    candidates = (
        Session.objects.open().with_job().filter(idle_timeout_seconds__isnull=False, job_started_at__isnull=False)
    )
    return [
        session.pk
        for session in candidates.only("job_started_at", "last_claim_at", "idle_timeout_seconds")
        if session.job_started_at
        and (session.last_claim_at or session.job_started_at) + timedelta(seconds=session.idle_timeout_seconds or 0)
        <= now + CLOSE_BEFORE_TIMEOUT
    ]


def _close_all(session_ids: Iterable[int], *, reason: str) -> list[int]:
    return [pk for pk in list(session_ids) if close_session(pk, reason=reason)]
