"""Closing: what remains to be done for a session that has ended.

Guarantees the order closing claim → its confirmation → completion, so that the depositor's refund
never precedes the host's last claim; that a session whose job ended on the chain is finished here too,
with what nobody will pay written down and why; and that nothing is asked of the chain before it is due
again. Leaves a session with a claim that failed for good to the operator until its job runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from jobs import sessions
from jobs.models import InferenceRequest, RequestState, Session, SessionState
from settlement import checkpoints, earnings, pacing
from settlement.chain.marketplace import EndedJob, MarketplaceJob, MarketplaceJobStatus, Refusal
from settlement.claims import completion_reference
from settlement.host_chain import HostChain
from settlement.models import Checkpoint, CheckpointState, Closing, TransactionKind, TransactionState
from settlement.models.transaction import UNFINISHED
from settlement.pauses import pause
from settlement.transaction_keys import completions_of_job
from settlement.txmanager import outbox

logger = logging.getLogger(__name__)

# Jobs that one question to the chain is about.
BATCH = 200

_FIRST_PAUSES = {Refusal.DISPUTE_WINDOW: timedelta(seconds=5)}
_USUAL_FIRST_PAUSE = timedelta(seconds=10)
# What only an operator, or the job's end, changes is looked at again after:
_OPERATOR_PAUSE = timedelta(minutes=1)
# The event of a job's end says what it paid, and becomes final in its own time.
_EVENT_PAUSE = timedelta(seconds=5)
# Where no event was seen for so many looks, the job's row on the chain has to do.
_LOOKS_FOR_EVENT = 8


def close_due(chain: HostChain) -> int:
    """Take each closing session that is due one step further; returns how many were finished."""
    due = list(_due(chain))
    return sum(_close_page(chain, due[start : start + BATCH]) for start in range(0, len(due), BATCH))


def _due(chain: HostChain) -> QuerySet[Session]:
    """Closing sessions that wait for nothing else: no request, no claim, no transaction, no pause."""
    now = timezone.now()
    capabilities = chain.marketplace.capabilities
    claimable = 1 if capabilities.closing_claim else capabilities.minimum_claim
    nothing_left = Q(tokens_tracked__lt=F("tokens_sealed") + claimable)
    if not capabilities.closing_claim:
        nothing_left |= Q(tokens_sealed=0, tokens_tracked__lt=F("first_claim_tokens"))
    running = InferenceRequest.objects.filter(session=OuterRef("pk"), state=RequestState.RUNNING)
    unpaid = Checkpoint.objects.unpaid().filter(session=OuterRef("pk"))
    return (
        Session.objects.closing()
        .filter(deployment=chain.key)
        .filter(nothing_left | Q(closing__ended_status__gt=""))
        .filter(Q(closing__isnull=True) | Q(closing__retry_at__isnull=True) | Q(closing__retry_at__lte=now))
        .exclude(closing__transaction__state__in=UNFINISHED)
        .filter(~Exists(running), ~Exists(unpaid))
        .select_related("closing__transaction")
        .order_by("id")
    )


def _close_page(chain: HostChain, page: Sequence[Session]) -> int:
    closings = {session.pk: closing_of(session) for session in page}
    asked = [session for session in page if not closings[session.pk].ended_status]
    finished = sum(finish(chain, session) for session in page if closings[session.pk].ended_status)
    if not asked:
        return finished
    jobs = chain.marketplace.find_jobs(chain.client, [_job_id(session) for session in asked])
    window = chain.marketplace.terms(chain.client).dispute_window
    now = pacing.chain_now(chain)
    for session, job in zip(asked, jobs, strict=True):
        closing = closings[session.pk]
        if job is None:
            _put_off(closing, pause=_OPERATOR_PAUSE, reason="the marketplace does not know the job")
        elif job.status is not MarketplaceJobStatus.ACTIVE:
            finished += _ended(chain, session, closing, job)
        elif not _came_to_nothing(chain, closing):
            _complete(chain, session, closing, job, now=now, dispute_until=job.disputed_from + window)
    return finished


def closing_of(session: Session) -> Closing:
    """The session's closing, made when it is first needed."""
    closing, _ = Closing.objects.select_related("transaction").get_or_create(session=session)
    return closing


def _ended(chain: HostChain, session: Session, closing: Closing, job: MarketplaceJob) -> bool:
    """The chain says that the job is over; its event, once final, says what that paid."""
    if chain.marketplace.capabilities.pays_on_claim and closing.tries >= _LOOKS_FOR_EVENT:
        Closing.objects.filter(pk=closing.pk).update(ended_status=job.status)
        return finish(chain, session)
    _put_off(closing, pause=_EVENT_PAUSE, reason=f"the job is {job.status}; its event is not final yet", tried=True)
    return False


def _came_to_nothing(chain: HostChain, closing: Closing) -> bool:
    """The newest completing transaction was refused or cancelled: wait, then try another."""
    row = closing.transaction
    if row is None or row.state == TransactionState.FINAL:
        return False
    if row.state == TransactionState.CANCELLED:
        first = _OPERATOR_PAUSE
    else:
        first = _FIRST_PAUSES.get(chain.marketplace.meaning_of(row.revert), _USUAL_FIRST_PAUSE)
    reason = f"the job could not be completed: {row.reason or row.revert or row.state}"
    wait = pause(closing.pk, tries=closing.tries, first=first)
    given_up = Closing.objects.filter(pk=closing.pk, transaction=row).update(
        transaction=None, tries=F("tries") + 1, retry_at=timezone.now() + wait, reason=reason[:500]
    )
    if given_up:
        logger.warning("%s: %s", closing, reason, extra={"event": "completion_refused"})
    return True


def _complete(
    chain: HostChain,
    session: Session,
    closing: Closing,
    job: MarketplaceJob,
    *,
    now: datetime,
    dispute_until: datetime,
) -> None:
    """Everything is claimed: complete the job, so that the rest of the deposit goes back."""
    if chain.signer is None or closing.transaction is not None:
        return
    overdue = now > _deadline(job)
    blocked = session.checkpoints.filter(state__in=(CheckpointState.FAILED, CheckpointState.PAUSED)).first()
    if blocked is not None and not overdue:
        _put_off(closing, pause=_OPERATOR_PAUSE, reason=f"{blocked} is {blocked.state}: {blocked.reason}")
        return
    if now < dispute_until and not overdue:
        _put_off(closing, pause=dispute_until - now, reason="the marketplace's dispute window")
        return
    # What the host may not complete, anybody may time out once it has run out.
    timed_out = overdue and closing.tries > 0
    call = (
        chain.marketplace.timeout(job_id=job.job_id)
        if timed_out
        else chain.marketplace.complete(job_id=job.job_id, reference=completion_reference(session))
    )
    with transaction.atomic():
        row = outbox.enqueue(
            key=f"{completions_of_job(session.deployment, session.job_id)}{closing.tries}",
            kind=TransactionKind.TIMEOUT if timed_out else TransactionKind.COMPLETE,
            call=call,
            chain_id=chain.deployment.chain_id,
            sender=chain.signer.address,
        )
        Closing.objects.filter(pk=closing.pk, transaction__isnull=True, tries=closing.tries).update(
            transaction=row, retry_at=None, reason=""
        )


def _deadline(job: MarketplaceJob) -> datetime:
    if job.idle_timeout_seconds is None:
        return job.expires_at
    return min(job.expires_at, job.last_proof_at + timedelta(seconds=job.idle_timeout_seconds))


def _put_off(closing: Closing, *, pause: timedelta, reason: str, tried: bool = False) -> None:
    Closing.objects.filter(pk=closing.pk).update(
        retry_at=timezone.now() + pause, reason=reason[:500], tries=F("tries") + (1 if tried else 0)
    )


def apply_ended_job(ended: EndedJob, *, chain: HostChain, at: datetime | None = None) -> None:
    """A job's end, as an event of a final block of time ``at`` states it."""
    session = Session.objects.filter(deployment=chain.key, job_id=ended.job_id).first()
    if session is None:
        return
    closing = closing_of(session)
    paid: dict[str, int] = {}
    if ended.settles:
        # What the depositor did not get back was paid: to the host as stated, to the treasury the rest.
        gross = max(session.deposit - ended.refund, ended.host_amount)
        paid = {"paid_gross": gross, "paid_host": ended.host_amount}
    with transaction.atomic():
        token, session_id = session.payment_token, session.pk
        earnings.book_refund(ended, token=token, deployment=chain.key, session_id=session_id, at=at)
        if paid:
            earnings.book_job_payment(
                ended, token=token, deployment=chain.key, session_id=session_id, gross=paid["paid_gross"], at=at
            )
        Closing.objects.filter(pk=closing.pk).update(
            ended_status=ended.status, retry_at=None, reason=f"job {ended.status} on the chain", **paid
        )
        sessions.close_session(session.pk, reason=f"job {ended.status} on the chain")
    finish(chain, session)


def finish(chain: HostChain, session: Session) -> bool:
    """The job is over and nothing of it is under way: pay out its claims, and write down what is lost."""
    with transaction.atomic():
        session.refresh_from_db()
        closing = closing_of(session)
        travels = closing.transaction is not None and closing.transaction.state in UNFINISHED
        running = InferenceRequest.objects.filter(session=session, state=RequestState.RUNNING).exists()
        if travels or running or session.checkpoints.unpaid().exists():
            # Our own closing claim or completion may be what ended it; once that is known, this is asked again.
            return False
        if closing.paid_gross is not None and closing.paid_host is not None:
            checkpoints.settle_job(session.pk, gross=closing.paid_gross, host_amount=closing.paid_host)
        completed = closing.transaction is not None and closing.transaction.state == TransactionState.FINAL
        ours = completed or session.checkpoints.paid().filter(closing=True).exists()
        state = SessionState.COMPLETED if ours else SessionState.ENDED_ON_CHAIN
        finished = sessions.finish_session(session.pk, state=state, reason=f"job {closing.ended_status} on the chain")
        lost = session.tokens_tracked - session.tokens_claimed
        reason = _why_unclaimable(chain, session, closing, lost=lost, ours=ours) if lost else ""
        Closing.objects.filter(pk=closing.pk).update(tokens_unclaimable=lost, unclaimable_reason=reason[:200])
    if finished and lost:
        logger.warning(
            "%s ended on the chain with %d tokens unclaimed: %s",
            session,
            lost,
            reason,
            extra={"event": "tokens_unclaimable", "session_id": session.pk, "job_id": str(session.job_id)},
        )
    return finished


def _why_unclaimable(chain: HostChain, session: Session, closing: Closing, *, lost: int, ours: bool) -> str:
    minimum = chain.marketplace.capabilities.minimum_claim
    first = session.first_claim_minimum
    if not ours:
        return f"the job was {closing.ended_status} on the chain before they were claimed"
    given_up = session.checkpoints.filter(state__in=(CheckpointState.FAILED, CheckpointState.PAUSED)).first()
    if given_up is not None:
        return f"{given_up} is {given_up.state}: {given_up.reason}"
    if first > minimum:
        return f"below the {first} tokens that the marketplace demands of this job's first claim"
    return f"below the marketplace's minimum of {minimum} tokens for a claim"


def _job_id(session: Session) -> int:
    assert session.job_id is not None  # noqa: S101 - the queryset holds sessions with a job
    return session.job_id
