"""Transactions (what shall happen), attempts (signed bytes) and receipts (what did happen), the sender whose
nonces they use, and the audit of everything about them that was not ordinary."""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models import Q

from jobs.models import AppendOnlyError, AppendOnlyQuerySet
from nodes.fields import AddressField, Hash32Field, Uint256Field


class TransactionKind(models.TextChoices):
    CLAIM = "claim", "submitProofOfWork"
    CLOSING_CLAIM = "closing_claim", "completeSessionJobWithProof"
    COMPLETE = "complete", "completeSessionJob"
    REGISTER = "register", "host registration"
    WITHDRAW = "withdraw", "withdrawal"
    TIMEOUT = "timeout", "triggerSessionTimeout"
    SWEEP = "sweep", "transfer to the sweep address"
    FILL = "fill", "nonce gap filled"


class TransactionState(models.TextChoices):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"  # has a nonce and signed bytes; no node has confirmed that it has them
    SENT = "sent"
    MINED = "mined"
    FINAL = "final"
    REVERTED = "reverted"
    CANCELLED = "cancelled"  # nothing of it will ever run
    FAILED = "failed"  # refused in simulation: never signed, holds no nonce


UNFINISHED = (
    TransactionState.QUEUED,
    TransactionState.IN_PROGRESS,
    TransactionState.SENT,
    TransactionState.MINED,
)
_WITHOUT_NONCE = (TransactionState.QUEUED, TransactionState.FAILED)


class TransactionQuerySet(models.QuerySet["Transaction"]):
    """Questions about transactions."""

    def queued(self) -> TransactionQuerySet:
        return self.filter(state=TransactionState.QUEUED)

    def unfinished(self) -> TransactionQuerySet:
        """Not yet in a state that nothing but a reorg can change."""
        return self.filter(state__in=UNFINISHED)

    def unmined(self) -> TransactionQuerySet:
        """Holding a nonce that the chain has not used yet, as far as is known."""
        return self.filter(state__in=(TransactionState.IN_PROGRESS, TransactionState.SENT))


class Transaction(models.Model):
    """A call that this node wants on the chain, once. ``key`` is derived from the domain row it serves.

    ``cost_limit`` (wei, the L1 data fee included) is what it may cost at most, from the value that it
    settles. ``revert`` names the contract's refusal once the state is failed or reverted.
    """

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
    revert = models.CharField(max_length=200, blank=True)
    priority = models.IntegerField(default=0, help_text="The highest is sent first.")
    cost_limit = Uint256Field(null=True, blank=True, help_text="wei")
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    bump_requested_at = models.DateTimeField(null=True, blank=True)
    observed_missing = models.PositiveSmallIntegerField(
        default=0, help_text="How often its nonce was found used while none of its attempts was mined."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = TransactionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["state", "id"], name="transaction_state"),
            models.Index(fields=["chain_id", "sender", "state", "nonce"], name="transaction_of_sender"),
        ]
        constraints = [
            # Without a condition: only rows that never took a nonce, or lost it for good, have none.
            models.UniqueConstraint(fields=["chain_id", "sender", "nonce"], name="one_live_transaction_per_nonce"),
            models.CheckConstraint(
                condition=Q(state__in=(*_WITHOUT_NONCE, TransactionState.CANCELLED)) | Q(nonce__isnull=False),
                name="a_started_transaction_has_a_nonce",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=_WITHOUT_NONCE) | Q(nonce__isnull=True),
                name="a_waiting_transaction_holds_no_nonce",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class AttemptState(models.TextChoices):
    SIGNED = "signed"  # no node has said that it has the bytes; one may have them all the same
    SENT = "sent"
    MINED = "mined"
    REPLACED = "replaced"
    DISPLACED = "displaced"  # another wallet used the nonce


class AttemptKind(models.TextChoices):
    CALL = "call", "the call"
    CANCEL = "cancel", "nothing, to cancel the call"


class Attempt(models.Model):
    """One signed raw transaction. Stored before any node sees it, and re-sent byte for byte.

    ``sends`` counts how often it was handed to a node, ``outcome`` is what the last answer meant,
    ``l1_fee`` (wei) what the L1 data fee was reckoned to be, ``sent_block`` the head when a node first took it.
    """

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="attempts")
    kind = models.CharField(max_length=10, choices=AttemptKind, default=AttemptKind.CALL)
    nonce = models.PositiveBigIntegerField()
    hash = Hash32Field(unique=True)
    raw = models.TextField(help_text="Signed transaction, hex.")
    gas_limit = models.PositiveBigIntegerField()
    max_fee_per_gas = Uint256Field(help_text="wei")
    max_priority_fee_per_gas = Uint256Field(help_text="wei")
    l1_fee = Uint256Field(default=0, help_text="wei")
    state = models.CharField(max_length=20, choices=AttemptState, default=AttemptState.SIGNED)
    sends = models.PositiveIntegerField(default=0)
    outcome = models.CharField(max_length=30, blank=True)
    error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    sent_block = models.PositiveBigIntegerField(null=True, blank=True)

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

    @property
    def worst_cost(self) -> int:
        """wei: all of its gas at its fee cap, and the L1 data fee."""
        return self.gas_limit * self.max_fee_per_gas + self.l1_fee


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
    l1_fee = Uint256Field(default=0, help_text="wei")
    revert = models.CharField(max_length=200, blank=True, help_text="The name of the contract's refusal.")
    revert_reason = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["block_time"], name="receipt_block_time"),
            models.Index(fields=["block_hash"], name="receipt_block_hash"),
        ]

    def __str__(self) -> str:
        return f"receipt of {self.attempt_id} in block {self.block_number}"

    @property
    def fee(self) -> int:
        """What the sender paid for gas and for a rollup's data, in wei."""
        return self.gas_used * self.effective_gas_price + self.l1_fee


class TransactionEvent(models.Model):
    """Something about a transaction that was not its ordinary way: who did it, and why. Never changed."""

    class What(models.TextChoices):
        CANCEL_REQUESTED = "cancel_requested"
        BUMP_REQUESTED = "bump_requested"
        CANCELLED = "cancelled"
        BUMPED = "bumped"
        DISPLACED = "displaced"
        REORGED = "reorged"
        LOST = "lost", "final, and gone from the chain"
        GAP_FILLED = "gap_filled"
        FAST_FORWARDED = "fast_forwarded", "nonces used elsewhere were skipped"
        REFUSED = "refused", "refused for good by a node"

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="events")
    what = models.CharField(max_length=20, choices=What)
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField()

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.what} by {self.actor}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnlyError("TransactionEvent rows are append-only")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AppendOnlyError("TransactionEvent rows are append-only")


class Sender(models.Model):
    """An account that sends: who is broadcasting for it just now, and whether it has to pause.

    ``fence`` grows with each change of the holder, so that a broadcaster which lost the lease while it
    was away can no longer store anything.
    """

    chain_id = models.BigIntegerField()
    address = AddressField()
    holder = models.CharField(max_length=200, blank=True)
    fence = models.PositiveBigIntegerField(default=0)
    leased_until = models.DateTimeField(null=True, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True)
    paused_reason = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["chain_id", "address"], name="one_row_per_sender"),
            models.CheckConstraint(condition=Q(holder="") | Q(leased_until__isnull=False), name="a_lease_has_an_end"),
            models.CheckConstraint(
                condition=Q(paused_until__isnull=True) | ~Q(paused_reason=""), name="a_pause_has_a_reason"
            ),
        ]

    def __str__(self) -> str:
        return self.address
