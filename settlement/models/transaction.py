"""Transactions (what shall happen), attempts (signed bytes) and receipts (what did happen)."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from nodes.fields import AddressField, Hash32Field, Uint256Field


class TransactionKind(models.TextChoices):
    CLAIM = "claim", "submitProofOfWork"
    CLOSING_CLAIM = "closing_claim", "completeSessionJobWithProof"
    COMPLETE = "complete", "completeSessionJob"
    REGISTER = "register", "host registration"
    WITHDRAW = "withdraw", "withdrawal"


class TransactionState(models.TextChoices):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"  # has a nonce; its attempt is being signed or handed to a node
    SENT = "sent"
    MINED = "mined"
    FINAL = "final"
    REVERTED = "reverted"
    REPLACED = "replaced"
    CANCELLED = "cancelled"
    FAILED = "failed"  # refused in simulation: never signed, holds no nonce


# States that hold a nonce which no other transaction of the sender may use.
_HOLDS_NONCE = Q(nonce__isnull=False) & ~Q(state=TransactionState.FAILED)


class TransactionQuerySet(models.QuerySet["Transaction"]):
    """Questions about transactions."""

    def queued(self) -> TransactionQuerySet:
        return self.filter(state=TransactionState.QUEUED)

    def unfinished(self) -> TransactionQuerySet:
        """Not yet in a state that nothing but a reorg can change."""
        return self.filter(
            state__in=(
                TransactionState.QUEUED,
                TransactionState.IN_PROGRESS,
                TransactionState.SENT,
                TransactionState.MINED,
            )
        )


class Transaction(models.Model):
    """A call that this node wants on the chain, once. ``key`` is derived from the domain row it serves."""

    key = models.CharField(max_length=200, unique=True)
    kind = models.CharField(max_length=20, choices=TransactionKind)
    chain_id = models.BigIntegerField()
    sender = AddressField()
    to = AddressField()
    data = models.TextField(help_text="Calldata, hex.")
    value = Uint256Field(default=0, help_text="wei")
    nonce = models.PositiveBigIntegerField(null=True, blank=True)
    state = models.CharField(max_length=20, choices=TransactionState, default=TransactionState.QUEUED)
    retry_at = models.DateTimeField(null=True, blank=True)
    retries = models.PositiveIntegerField(default=0)
    reason = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = TransactionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["state", "id"], name="transaction_state")]
        constraints = [
            models.UniqueConstraint(
                fields=["chain_id", "sender", "nonce"],
                condition=_HOLDS_NONCE,
                name="one_live_transaction_per_nonce",
            ),
            models.UniqueConstraint(
                fields=["chain_id", "sender"],
                condition=Q(state=TransactionState.IN_PROGRESS),
                name="one_transaction_in_progress_per_sender",
            ),
            models.CheckConstraint(
                condition=Q(state__in=(TransactionState.QUEUED, TransactionState.FAILED)) | Q(nonce__isnull=False),
                name="a_started_transaction_has_a_nonce",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class AttemptState(models.TextChoices):
    SIGNED = "signed"
    SENT = "sent"
    MINED = "mined"
    REPLACED = "replaced"


class Attempt(models.Model):
    """One signed raw transaction. Stored before any node sees it, and re-sent byte for byte."""

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="attempts")
    hash = Hash32Field(unique=True)
    raw = models.TextField(help_text="Signed transaction, hex.")
    gas_limit = models.PositiveBigIntegerField()
    max_fee_per_gas = Uint256Field(help_text="wei")
    max_priority_fee_per_gas = Uint256Field(help_text="wei")
    state = models.CharField(max_length=20, choices=AttemptState, default=AttemptState.SIGNED)
    error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(state=AttemptState.SIGNED) | Q(sent_at__isnull=False),
                name="a_sent_attempt_has_its_time",
            )
        ]

    def __str__(self) -> str:
        return self.hash


class Receipt(models.Model):
    """What the chain says became of an attempt. Removed again if a reorg takes the block away."""

    transaction = models.OneToOneField(Transaction, on_delete=models.PROTECT, related_name="receipt")
    attempt = models.OneToOneField(Attempt, on_delete=models.PROTECT, related_name="receipt")
    block_number = models.PositiveBigIntegerField()
    block_hash = Hash32Field()
    block_time = models.DateTimeField()
    succeeded = models.BooleanField()
    gas_used = models.PositiveBigIntegerField()
    effective_gas_price = Uint256Field(help_text="wei")
    revert_reason = models.CharField(max_length=500, blank=True)

    def __str__(self) -> str:
        return f"receipt of {self.attempt_id} in block {self.block_number}"

    @property
    def fee(self) -> int:
        """What the sender paid for gas, in wei."""
        return self.gas_used * self.effective_gas_price
