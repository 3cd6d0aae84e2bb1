"""Closing: what remains to be done for a session that has ended.

Guarantees the order closing claim → its confirmation → completion, so that the depositor's refund
never precedes the host's last claim; and that a session whose job ended on the chain is finished
here too. Leaves a session with a claim that failed for good to the operator.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.utils import timezone

from jobs import sessions
from jobs.models import RequestState, Session, SessionState
from settlement import earnings
from settlement.chain.client import CallReverted
from settlement.chain.marketplaces import EndedJob, MarketplaceJobStatus
from settlement.claims import completion_reference
from settlement.host_chain import HostChain
from settlement.models import CheckpointState, Receipt, Transaction, TransactionKind, TransactionState
from settlement.transaction_keys import completions_of_job
from settlement.txmanager import outbox

logger = logging.getLogger(__name__)


def close_due(chain: HostChain) -> int:
    """Take each closing session one step further; returns how many were finished."""
    closing = Session.objects.closing().filter(deployment=chain.key).order_by("id")
    return sum(_close(chain, session) for session in closing)


def _close(chain: HostChain, session: Session) -> bool:
    if session.requests.filter(state=RequestState.RUNNING).exists() or session.checkpoints.unpaid().exists():
        return False
    job_id = session.job_id
    assert job_id is not None  # noqa: S101 - the queryset holds sessions with a job
    job = chain.marketplace.find_job(chain.client, job_id)
    if job is None:
        return False
    if _completion_travels(session):
        return False
    if job.status is not MarketplaceJobStatus.ACTIVE:
        return _finish_ended(session, status=job.status)
    blocked = session.checkpoints.filter(state__in=(CheckpointState.FAILED, CheckpointState.PAUSED)).exists()
    claimable = session.tokens_unsealed and (
        chain.marketplace.capabilities.closing_claim
        or session.tokens_unsealed >= chain.marketplace.capabilities.minimum_claim
    )
    if blocked or claimable:
        return False
    return _complete(chain, session)


def _finish_ended(session: Session, *, status: MarketplaceJobStatus) -> bool:
    """The chain says that the job is over: by our own closing claim, or by somebody else."""
    ours = (
        session.checkpoints.paid().filter(closing=True).exists()
        or Transaction.objects.filter(key__startswith=_key(session), state=TransactionState.FINAL).exists()
    )
    state = SessionState.COMPLETED if ours else SessionState.ENDED_ON_CHAIN
    return sessions.finish_session(session.pk, state=state, reason=f"job {status} on the chain")


def _completion_travels(session: Session) -> bool:
    """Our own completion is on its way: what ended the job is known once that is final."""
    return Transaction.objects.unfinished().filter(key__startswith=_key(session)).exists()


def _complete(chain: HostChain, session: Session) -> bool:
    """Everything is claimed: complete the job, so that the rest of the deposit goes back."""
    if chain.signer is None or session.job_id is None:
        return False
    tries = Transaction.objects.filter(key__startswith=_key(session))
    given_up = tries.filter(state__in=(TransactionState.FAILED, TransactionState.REVERTED)).count()
    if tries.count() > given_up:
        return False
    call = chain.marketplace.complete(job_id=session.job_id, reference=completion_reference(session))
    try:
        chain.client.simulate(call, sender=chain.signer.address)
    except CallReverted as reverted:
        logger.info("%s cannot be completed yet: %s", session, reverted.revert)
        return False
    outbox.enqueue(
        key=f"{_key(session)}{given_up}",
        kind=TransactionKind.COMPLETE,
        call=call,
        chain_id=chain.deployment.chain_id,
        sender=chain.signer.address,
    )
    return False


def _key(session: Session) -> str:
    """What the keys of a session's completing transactions begin with; the number of the try follows."""
    return completions_of_job(session.deployment, session.job_id)


def book_completion_gas(chain: HostChain) -> None:
    """Book what completing transactions cost, once they are final."""
    receipts = Receipt.objects.filter(
        transaction__kind=TransactionKind.COMPLETE,
        transaction__chain_id=chain.deployment.chain_id,
        transaction__state__in=(TransactionState.FINAL, TransactionState.REVERTED),
        transaction__key__startswith=f"complete:{chain.key}:",
    ).select_related("attempt", "transaction")
    for receipt in receipts:
        job_id = int(receipt.transaction.key.rsplit(":", 2)[1])
        session = Session.objects.filter(deployment=chain.key, job_id=job_id).first()
        earnings.book_gas(receipt, deployment=chain.key, session_id=session.pk if session else None)


def apply_ended_job(ended: EndedJob, *, chain: HostChain) -> None:
    """A job's end, as an event of a final block states it."""
    session = Session.objects.filter(deployment=chain.key, job_id=ended.job_id).first()
    if session is None:
        return
    with transaction.atomic():
        earnings.book_refund(ended, token=session.payment_token, deployment=chain.key, session_id=session.pk)
        if session.checkpoints.unpaid().exists() or _completion_travels(session):
            # Our own closing claim or completion may be what ended it: its confirmation finishes the session.
            sessions.close_session(session.pk, reason=f"job {ended.status} on the chain")
            return
    lost = session.tokens_tracked - session.tokens_claimed
    if _finish_ended(session, status=ended.status) and lost:
        logger.warning(
            "%s ended on the chain with %d tokens unclaimed",
            session,
            lost,
            extra={"event": "tokens_unclaimable", "session_id": session.pk, "job_id": str(ended.job_id)},
        )
    Session.objects.filter(pk=session.pk, closed_at__isnull=True).update(closed_at=timezone.now())
