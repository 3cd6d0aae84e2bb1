"""Withdrawals that were asked for, and the last look at the ledger."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from nodes.fields import Uint256Field
from settlement.models.transaction import Transaction


class WithdrawalKind(models.TextChoices):
    WITHDRAW = "withdraw", "from HostEarnings to the host"
    SWEEP = "sweep", "from the host to the operator's address"


class WithdrawalState(models.TextChoices):
    REQUESTED = "requested"
    SENT = "sent"  # in the outbox; its transaction says how far it got
    FINAL = "final"
    FAILED = "failed"


UNFINISHED_WITHDRAWALS = (WithdrawalState.REQUESTED, WithdrawalState.SENT)


class WithdrawalQuerySet(models.QuerySet["Withdrawal"]):
    """Questions about withdrawals."""

    def unfinished(self) -> WithdrawalQuerySet:
        return self.filter(state__in=UNFINISHED_WITHDRAWALS)


class Withdrawal(models.Model):
    """One request to move earnings. ``amount`` (base units) is empty where everything is meant.

    ``request_key`` comes from whoever asks: the same key asks for the same withdrawal, however often.
    ``tokens`` are addresses in lower case; what was paid is told by the earning rows of its transaction.
    ``recipient``, in lower case too, is where a sweep goes, whatever is configured since; a withdrawal has
    none, it goes to the host.
    """

    deployment = models.CharField(max_length=120)
    kind = models.CharField(max_length=20, choices=WithdrawalKind, default=WithdrawalKind.WITHDRAW)
    tokens = models.JSONField()
    amount = Uint256Field(null=True, blank=True)
    recipient = models.CharField(max_length=42, blank=True)
    request_key = models.CharField(max_length=120)
    requested_by = models.CharField(max_length=150)
    forced = models.BooleanField(default=False, help_text="Sent although the gas may be worth more.")
    state = models.CharField(max_length=20, choices=WithdrawalState, default=WithdrawalState.REQUESTED)
    reason = models.CharField(max_length=500, blank=True)
    transaction = models.OneToOneField(
        Transaction, on_delete=models.PROTECT, null=True, blank=True, related_name="withdrawal"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = WithdrawalQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "request_key"], name="one_withdrawal_per_request"),
            models.UniqueConstraint(
                fields=["deployment", "kind"],
                condition=Q(state__in=UNFINISHED_WITHDRAWALS),
                name="one_withdrawal_of_a_kind_at_a_time",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=(WithdrawalState.SENT, WithdrawalState.FINAL)) | Q(transaction__isnull=False),
                name="a_sent_withdrawal_has_a_transaction",
            ),
            models.CheckConstraint(
                condition=~Q(kind=WithdrawalKind.SWEEP, state__in=(WithdrawalState.SENT, WithdrawalState.FINAL))
                | ~Q(recipient=""),
                name="a_sent_sweep_has_a_recipient",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"


class LedgerCheck(models.Model):
    """The last run of the ledger's checks of one part: its numbers by invariant, and what was found first."""

    deployment = models.CharField(max_length=120, blank=True)
    part = models.CharField(max_length=20, help_text="database or chain")
    at = models.DateTimeField()
    counts = models.JSONField(help_text="Violations by invariant.")
    findings = models.JSONField(default=list, help_text="The first of them, in words.")

    class Meta:
        ordering = ["part"]
        constraints = [models.UniqueConstraint(fields=["deployment", "part"], name="one_last_check_per_part")]

    def __str__(self) -> str:
        return f"check of the {self.part} at {self.at:%Y-%m-%d %H:%M}"


class GasCursor(models.Model):
    """Up to which transaction (by row id) everything final has its gas booked."""

    deployment = models.CharField(max_length=120, unique=True)
    transaction_id = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"gas of {self.deployment} booked to transaction {self.transaction_id}"
