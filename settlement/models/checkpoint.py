"""Checkpoints: ranges of counted tokens on their way to being paid, and every step they took."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

from django.db import models
from django.db.models import F, Q

from jobs.models import AppendOnlyError, AppendOnlyQuerySet, Session
from nodes.fields import Hash32Field, Uint256Field
from settlement.models.transaction import Transaction


class CheckpointState(models.TextChoices):
    SEALED = "sealed"
    PROVING = "proving"
    PROVED = "proved"
    QUEUED = "queued"
    SENT = "sent"
    MINED = "mined"
    CONFIRMED = "confirmed"
    SETTLED = "settled"
    WITHDRAWN = "withdrawn"
    RETRY_AT = "retry_at"
    PAUSED = "paused"
    FAILED = "failed"
    REORGED = "reorged"


# On their way, and not in a block yet: the next claim of the same job waits for them.
UNMINED_STATES = (
    CheckpointState.SEALED,
    CheckpointState.PROVING,
    CheckpointState.PROVED,
    CheckpointState.QUEUED,
    CheckpointState.SENT,
    CheckpointState.RETRY_AT,
    CheckpointState.REORGED,
)
UNPAID_STATES = (*UNMINED_STATES, CheckpointState.MINED)
# The marketplace accepted the claim for good. In a generation that pays when the job ends, the amounts
# of a confirmed one are not known before that.
PAID_STATES = (CheckpointState.CONFIRMED, CheckpointState.SETTLED, CheckpointState.WITHDRAWN)
_CREDITED_STATES = (CheckpointState.SETTLED, CheckpointState.WITHDRAWN)


class CheckpointQuerySet(models.QuerySet["Checkpoint"]):
    """Questions about checkpoints."""

    def unpaid(self) -> CheckpointQuerySet:
        """On their way: neither paid nor given up nor held by the operator."""
        return self.filter(state__in=UNPAID_STATES)

    def unmined(self) -> CheckpointQuerySet:
        """On their way and not in a block yet."""
        return self.filter(state__in=UNMINED_STATES)

    def paid(self) -> CheckpointQuerySet:
        """Accepted by the marketplace for good, credited already or when the job ends."""
        return self.filter(state__in=PAID_STATES)

    def due(self, *states: CheckpointState, now: datetime) -> CheckpointQuerySet:
        """In one of ``states`` and not told to wait beyond ``now``."""
        return self.filter(state__in=states).filter(Q(retry_at__isnull=True) | Q(retry_at__lte=now))


class Checkpoint(models.Model):
    """Tokens ``[from_token, to_token)`` of a job's session, claimed as one.

    ``gross``, ``host_amount`` and ``treasury_amount`` are base units of the job's payment token, as
    the chain's events stated them (of a job that is paid at its end, this claim's part of it); empty
    until those were seen.
    """

    session = models.ForeignKey(Session, on_delete=models.PROTECT, related_name="checkpoints")
    index = models.PositiveIntegerField()
    from_token = models.BigIntegerField()
    to_token = models.BigIntegerField()
    closing = models.BooleanField(default=False, help_text="The session's last claim: completes the job too.")
    state = models.CharField(max_length=20, choices=CheckpointState, default=CheckpointState.SEALED)
    retry_at = models.DateTimeField(null=True, blank=True)
    retries = models.PositiveIntegerField(default=0)
    reason = models.CharField(max_length=500, blank=True)
    prover = models.CharField(max_length=40, blank=True)
    proof = models.BinaryField(null=True, blank=True)
    proof_hash = Hash32Field(blank=True)
    transaction = models.OneToOneField(
        Transaction, on_delete=models.PROTECT, null=True, blank=True, related_name="checkpoint"
    )
    gross = Uint256Field(null=True, blank=True)
    host_amount = Uint256Field(null=True, blank=True)
    treasury_amount = Uint256Field(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    confirmed_at = models.DateTimeField(null=True, blank=True)

    objects = CheckpointQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["state", "retry_at"], name="checkpoint_state_retry"),
            models.Index(fields=["session"], condition=Q(state__in=UNMINED_STATES), name="checkpoint_unmined"),
            models.Index(fields=["session"], condition=Q(state__in=UNPAID_STATES), name="checkpoint_unpaid"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["session", "index"], name="one_checkpoint_per_index"),
            models.UniqueConstraint(fields=["session", "from_token"], name="one_checkpoint_per_start"),
            models.UniqueConstraint(fields=["session", "to_token"], name="one_checkpoint_per_end"),
            models.UniqueConstraint(
                fields=["proof_hash"], condition=~Q(proof_hash=""), name="a_proof_serves_one_checkpoint"
            ),
            models.CheckConstraint(condition=Q(from_token__gte=0), name="checkpoint_starts_at_a_token"),
            models.CheckConstraint(condition=Q(to_token__gt=F("from_token")), name="checkpoint_holds_tokens"),
            models.CheckConstraint(
                condition=~Q(state__in=(CheckpointState.QUEUED, CheckpointState.SENT, CheckpointState.MINED))
                | Q(transaction__isnull=False),
                name="a_queued_checkpoint_has_a_transaction",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=PAID_STATES) | (Q(transaction__isnull=False) & Q(confirmed_at__isnull=False)),
                name="a_paid_checkpoint_has_its_event",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=_CREDITED_STATES)
                | (Q(gross__isnull=False) & Q(host_amount__isnull=False) & Q(treasury_amount__isnull=False)),
                name="a_credited_checkpoint_has_its_amounts",
            ),
        ]

    def __str__(self) -> str:
        return f"checkpoint {self.index} of {self.session}"

    @property
    def tokens(self) -> int:
        """How many token ids this checkpoint claims."""
        return self.to_token - self.from_token


class CheckpointEvent(models.Model):
    """One step of a checkpoint. Written in the transaction that takes the step; never changed."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="events")
    from_state = models.CharField(max_length=20, blank=True)
    to_state = models.CharField(max_length=20, choices=CheckpointState)
    reason = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(fields=["at"], condition=Q(to_state=CheckpointState.PROVED), name="checkpoint_proved_at")
        ]

    def __str__(self) -> str:
        return f"{self.from_state or 'new'} → {self.to_state}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnlyError("CheckpointEvent rows are append-only")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AppendOnlyError("CheckpointEvent rows are append-only")
