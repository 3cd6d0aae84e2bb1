"""What is left to be done for sessions whose job ends, and how far the host's list of jobs was read."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from jobs.models import Session
from nodes.fields import Uint256Field
from settlement.models.transaction import Transaction


class Closing(models.Model):
    """The end of a session's job: the tries to complete it, and what the chain said when it ended.

    ``paid_gross`` and ``paid_host`` are base units of the job's token, set where the end of the job is
    what pays its claims. ``tokens_unclaimable`` were counted and can never be paid;
    ``unclaimable_reason`` says why.
    """

    session = models.OneToOneField(Session, on_delete=models.PROTECT, related_name="closing")
    transaction = models.ForeignKey(
        Transaction, on_delete=models.PROTECT, null=True, blank=True, related_name="+", help_text="The newest try."
    )
    tries = models.PositiveIntegerField(default=0, help_text="Tries that came to nothing.")
    retry_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    ended_status = models.CharField(max_length=20, blank=True, help_text="How a final event says that the job ended.")
    paid_gross = Uint256Field(null=True, blank=True)
    paid_host = Uint256Field(null=True, blank=True)
    tokens_unclaimable = models.BigIntegerField(default=0)
    unclaimable_reason = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(tokens_unclaimable=0) | ~Q(unclaimable_reason=""), name="what_is_unclaimable_has_a_reason"
            ),
            models.CheckConstraint(
                condition=Q(paid_gross__isnull=True, paid_host__isnull=True)
                | Q(paid_gross__isnull=False, paid_host__isnull=False),
                name="a_paid_job_has_both_amounts",
            ),
        ]

    def __str__(self) -> str:
        return f"closing of {self.session}"


class JobScan(models.Model):
    """How many of the host's jobs, oldest first, the chain's list was read for."""

    deployment = models.CharField(max_length=120, unique=True)
    jobs_seen = models.PositiveBigIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.deployment}: {self.jobs_seen} jobs seen"
