"""Checkpoints: seal counted tokens, and every step from there to paid.

Guarantees that ranges of a session tile what was counted, without overlap or gap; that each step is
one conditional update and one event row in one transaction, so that of two workers one does it; and
that "confirmed" means a final receipt *and* the marketplace's own event with this job, host and count.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from jobs.models import Session
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState


def move(
    checkpoint_id: int,
    *,
    from_state: CheckpointState,
    to_state: CheckpointState,
    reason: str = "",
    retry_at: datetime | None = None,
    **changes: Any,
) -> bool:
    """Take one step. ``False`` if the checkpoint is no longer in ``from_state``: somebody else took it."""
    with transaction.atomic():
        moved = Checkpoint.objects.filter(pk=checkpoint_id, state=from_state).update(
            state=to_state, reason=reason[:500], retry_at=retry_at, **changes
        )
        if moved:
            CheckpointEvent.objects.create(
                checkpoint_id=checkpoint_id, from_state=from_state, to_state=to_state, reason=reason[:500]
            )
    return bool(moved)


def wait(checkpoint: Checkpoint, *, until: datetime, reason: str) -> bool:
    """Put a checkpoint off; it stays claimable."""
    return move(
        checkpoint.pk,
        from_state=CheckpointState(checkpoint.state),
        to_state=CheckpointState.RETRY_AT,
        reason=reason,
        retry_at=until,
        retries=F("retries") + 1,
    )


def fail(checkpoint: Checkpoint, *, reason: str) -> bool:
    """Give a checkpoint up: the chain will never accept it. An operator sees why."""
    return move(
        checkpoint.pk,
        from_state=CheckpointState(checkpoint.state),
        to_state=CheckpointState.FAILED,
        reason=reason,
    )


def seal(session: Session, *, tokens: int, closing: bool) -> Checkpoint | None:
    """Seal the next ``tokens`` counted tokens of a session. ``None`` if another worker was faster."""
    first = session.tokens_sealed
    with transaction.atomic():
        sealed = Session.objects.filter(pk=session.pk, tokens_sealed=first, tokens_tracked__gte=first + tokens).update(
            tokens_sealed=first + tokens, checkpoint_count=F("checkpoint_count") + 1
        )
        if not sealed:
            return None
        checkpoint = Checkpoint.objects.create(
            session=session,
            index=session.checkpoint_count,
            from_token=first,
            to_token=first + tokens,
            closing=closing,
        )
        CheckpointEvent.objects.create(
            checkpoint=checkpoint, to_state=CheckpointState.SEALED, reason="closing claim" if closing else ""
        )
    return checkpoint


def keep_proof(checkpoint: Checkpoint, *, prover: str, proof: bytes, proof_hash: str) -> bool:
    """Store the proof of a checkpoint that this worker is proving."""
    return move(
        checkpoint.pk,
        from_state=CheckpointState.PROVING,
        to_state=CheckpointState.PROVED,
        prover=prover,
        proof=proof,
        proof_hash=proof_hash,
    )


def confirm(checkpoint: Checkpoint, *, host_amount: int, treasury_amount: int, claimed_at: datetime) -> bool:
    """The marketplace paid: book the claim. Amounts in base units of the job's token, time of the block."""
    with transaction.atomic():
        confirmed = move(
            checkpoint.pk,
            from_state=CheckpointState.MINED,
            to_state=CheckpointState.CONFIRMED,
            reason="event matched and final",
            gross=host_amount + treasury_amount,
            host_amount=host_amount,
            treasury_amount=treasury_amount,
            confirmed_at=timezone.now(),
        )
        if confirmed:
            Session.objects.filter(pk=checkpoint.session_id).update(
                tokens_claimed=F("tokens_claimed") + checkpoint.tokens, last_claim_at=claimed_at
            )
    return confirmed
