"""Sessions: what a job can pay for, when a session ends, and what ended it.

Guarantees that a prompt is refused before a token is generated unless its job exists, is active,
names this host, has deposit left and has not run out; that a dropped socket ends a session only
after a grace period without any other socket; and that a closed session stays closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from jobs import spending
from jobs.access_rules import SpendingPolicy
from jobs.callers import ANYBODY, Caller
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
    _check_first_claim(job)


def _check_first_claim(job: ChainJob) -> None:
    """Refuse a job of which no claim can ever be made: its first would exceed the deposit, or the host's limit."""
    if job.tokens_used:
        return
    first = job.first_claim_tokens
    worth = first * job.price_per_token // job.price_precision
    if first > job.token_budget:
        why = f"its deposit pays for {job.token_budget}"
    elif job.exposure_limit is not None and worth > job.exposure_limit:
        why = f"these are worth {worth} base units, and this host leaves no more than {job.exposure_limit} unpaid"
    else:
        return
    raise RequestError(
        code="first_claim_too_large",
        message=f"Job {job.job_id} lets its host claim nothing before {first} tokens, and {why}. "
        "Open a job with a larger deposit or a smaller proof interval.",
        status=409,
        details={"job_id": str(job.job_id), "first_claim_tokens": str(first)},
    )


def _exhausted(job_id: int) -> RequestError:
    return RequestError(
        code="deposit_exhausted",
        message=f"The deposit of job {job_id} is used up. Open a new job with a deposit.",
        status=402,
        details={"job_id": str(job_id)},
    )


def _check_exposure(session: Session, job: ChainJob) -> None:
    """Refuse further work on a job while too much of it waits to be paid."""
    if job.exposure_limit is None:
        return
    unpaid = session.exposure
    if unpaid >= job.exposure_limit:
        raise _overexposed(f"Job {job.job_id} owes this host {unpaid}", limit=job.exposure_limit, job=job)


def _check_exposure_of_all(job: ChainJob) -> None:
    if job.exposure_limit_of_all is None:
        return
    owing = Session.objects.owing().filter(deployment=job.deployment, payment_token=job.payment_token.lower())
    unpaid = sum(session.exposure for session in owing.iterator())
    if unpaid >= job.exposure_limit_of_all:
        raise _overexposed(f"This host's jobs owe it {unpaid}", limit=job.exposure_limit_of_all, job=job)


def _overexposed(owed: str, *, limit: int, job: ChainJob) -> RequestError:
    return RequestError(
        code="exposure_limit",
        message=f"{owed} base units of {job.payment_token} for work that is not paid yet; the host's limit is "
        f"{limit}. It goes on as soon as claims are confirmed: try again shortly.",
        status=503,
        details={"job_id": str(job.job_id), "limit": str(limit)},
        retry_after=10,
    )


def open_job_session(
    job: ChainJob,
    *,
    reference: SessionReference,
    caller: Caller = ANYBODY,
    policy: SpendingPolicy = SpendingPolicy.DEPOSITOR,
) -> OpenedSession:
    """The session of ``job``, made at its first prompt and kept from then on. Raises ``RequestError``.

    The caller has checked the job (``check_payable``); here the node's own count is checked too,
    which is ahead of the chain's by what is not claimed yet.
    """
    now = timezone.now()
    leave = spending.leave_of(job, caller=caller, policy=policy)
    _check_exposure_of_all(job)
    with transaction.atomic():
        session, _ = _job_session(job, client_session_id=reference.session_id, now=now)
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
        _check_exposure(session, job)
        bound = spending.bind(session, job=job, caller=caller, leave=leave)
        Session.objects.filter(pk=session.pk).update(last_activity_at=now)
    return OpenedSession(
        id=session.pk,
        tokens_left=session.tokens_left,
        billing=BillingNote(
            job_id=job.job_id,
            claimable=True,
            reason="job",
            message=f"Counted for job {job.job_id}; claimed from its deposit in checkpoints.",
            session_token=bound.token,
        ),
    )


def restore_job_session(job: ChainJob) -> tuple[int, bool]:
    """The session of a job found on the chain, and whether it had to be made. Nobody need ever prompt on it."""
    session, created = _job_session(job, client_session_id="", now=timezone.now())
    return session.pk, created


def _job_session(job: ChainJob, *, client_session_id: str, now: datetime) -> tuple[Session, bool]:
    return Session.objects.get_or_create(
        deployment=job.deployment,
        job_id=job.job_id,
        defaults={
            "client_session_id": client_session_id,
            "host": job.host,
            "depositor": job.depositor,
            "payment_token": job.payment_token,
            "deposit": job.deposit,
            "price_per_token": job.price_per_token,
            "price_precision": job.price_precision,
            "tokens_per_second": job.tokens_per_second,
            "first_claim_tokens": min(job.first_claim_tokens, _MAX_TOKEN_COUNT),
            "token_budget": min(job.token_budget, _MAX_TOKEN_COUNT),
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


def unpaid(reference: SessionReference, *, chain_id: int, api_keys_only: bool) -> RequestError:
    """The refusal of a request that no deposit pays for; ``api_keys_only``: an API key would have done."""
    named = "names no job" if reference.job_id is None else f"names job {reference.job_id}, which does not exist"
    if api_keys_only:
        return RequestError(
            code="api_key_required",
            message=f"This host serves paid jobs and holders of its API keys, and the request {named} on chain "
            f"{chain_id}. Send an API key of this host as Authorization: Bearer, or the id of a job as job_id.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
    return RequestError(
        code="payment_required",
        message=f"This host serves paid jobs only, and the request {named} on chain {chain_id}. "
        "Open a job for this host on the marketplace and send its id as job_id.",
        status=402,
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


def refresh_sockets(bound: Collection[tuple[int, UUID]]) -> None:
    """Say that these WebSockets, each with its session, are still there; one that was taken for dead is back."""
    connections = {connection_id for _, connection_id in bound}
    refreshed = SocketPresence.objects.filter(connection_id__in=connections).update(seen_at=timezone.now())
    if refreshed >= len(bound):
        return
    known = set(SocketPresence.objects.filter(connection_id__in=connections).values_list("session_id", "connection_id"))
    for session_id, connection_id in set(bound) - known:
        attach_socket(session_id, connection_id=connection_id)


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


def reopen_for_closing(session_ids: Iterable[int], *, reason: str) -> list[int]:
    """Sessions that were finished too early: their jobs are to be ended once more. Returns those changed."""
    ended = (SessionState.COMPLETED, SessionState.ENDED_ON_CHAIN)
    finished = Session.objects.with_job().filter(state__in=ended)
    return [pk for pk in session_ids if finished.filter(pk=pk).update(state=SessionState.CLOSING, close_reason=reason)]


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
    rows = candidates.order_by().values_list("pk", "job_started_at", "last_claim_at", "idle_timeout_seconds")
    return [
        pk
        for pk, started_at, last_claim_at, idle_seconds in rows.iterator()
        if started_at
        and idle_seconds is not None
        and (last_claim_at or started_at) + timedelta(seconds=idle_seconds) <= now + CLOSE_BEFORE_TIMEOUT
    ]


def _close_all(session_ids: Iterable[int], *, reason: str) -> list[int]:
    return [pk for pk in list(session_ids) if close_session(pk, reason=reason)]
