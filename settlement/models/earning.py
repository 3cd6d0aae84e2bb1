"""Money that moved, as the chain's events state it."""

from __future__ import annotations

from django.db import models

from jobs.models import Session
from nodes.fields import AddressField, Hash32Field, Uint256Field


class EarningKind(models.TextChoices):
    HOST = "host", "credited to the host"
    TREASURY = "treasury", "credited to the treasury"
    REFUND = "refund", "refunded to the depositor"
    GAS = "gas", "gas paid by the host"
    WITHDRAWAL = "withdrawal", "withdrawn by the host"


class Earning(models.Model):
    """One movement of ``amount`` base units of ``token`` (address zero = native coin).

    Identified by the log that states it; gas, which has no log, by its transaction and index -1.
    """

    deployment = models.CharField(max_length=120)
    session = models.ForeignKey(Session, on_delete=models.PROTECT, null=True, blank=True, related_name="earnings")
    kind = models.CharField(max_length=20, choices=EarningKind)
    token = AddressField()
    amount = Uint256Field()
    transaction_hash = Hash32Field()
    log_index = models.IntegerField()
    block_number = models.PositiveBigIntegerField()
    block_hash = Hash32Field()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["kind", "token"], name="earning_kind_token")]
        constraints = [
            models.UniqueConstraint(fields=["transaction_hash", "log_index", "kind"], name="one_earning_per_event")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount} of {self.token}"
