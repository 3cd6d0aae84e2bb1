"""The contracts as this node found them on the chain, for operators to look at."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from nodes.fields import AddressField, Hash32Field


class ContractDeployment(models.Model):
    """One contract of the deployment in use, with what was read from the chain at ``checked_at``."""

    deployment = models.CharField(max_length=120)
    chain_id = models.BigIntegerField()
    generation = models.CharField(max_length=60)
    name = models.CharField(max_length=60)
    address = AddressField()
    code_hash = Hash32Field(blank=True, help_text="keccak-256 of the code; empty where there is none.")
    fee_basis_points = models.PositiveIntegerField(null=True, blank=True)
    claimants = models.CharField(max_length=300, blank=True, help_text="Who may claim.")
    settings = models.JSONField(default=dict, blank=True, help_text="Further values read from the contract.")
    checked_at = models.DateTimeField()

    class Meta:
        ordering = ["deployment", "name"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "name"], name="one_row_per_contract_of_a_deployment"),
            models.CheckConstraint(
                condition=Q(fee_basis_points__isnull=True) | Q(fee_basis_points__lte=10_000),
                name="fee_is_at_most_everything",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} at {self.address}"
