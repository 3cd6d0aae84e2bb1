"""Rows of the host itself: who it is on the chain, and which models it serves."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from nodes.fields import AddressField


class Host(models.Model):
    """This node's account as the node registry shows it. One row per chain and address."""

    chain_id = models.BigIntegerField()
    address = AddressField()
    api_url = models.CharField(max_length=300, blank=True)
    public_key = models.CharField(max_length=68, blank=True, help_text="Compressed secp256k1 key, hex.")
    registered = models.BooleanField(default=False)
    checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["chain_id", "address"], name="one_row_per_host_and_chain")]

    def __str__(self) -> str:
        return f"{self.address} on chain {self.chain_id}"


class ServedModelQuerySet(models.QuerySet["ServedModel"]):
    """Questions about served models."""

    def enabled(self) -> ServedModelQuerySet:
        return self.filter(enabled=True)


class ServedModel(models.Model):
    """A model that this host serves: its id, the names clients may use for it, and its files."""

    id = models.SlugField(primary_key=True, max_length=120)
    aliases = models.JSONField(default=list, blank=True, help_text="Further names that clients may send.")
    path = models.CharField(max_length=1000)
    source = models.CharField(max_length=500)
    architecture = models.CharField(max_length=60)
    quantization = models.CharField(max_length=60)
    context_length = models.PositiveIntegerField()
    vocabulary_size = models.PositiveIntegerField()
    manifest_sha256 = models.CharField(max_length=64)
    revision = models.CharField(max_length=40, blank=True, help_text="Commit of a model that came from a hub.")
    size_bytes = models.PositiveBigIntegerField(default=0)
    check_method = models.CharField(max_length=120, blank=True)
    check_tokens = models.PositiveIntegerField(default=0, help_text="Positions that were compared.")
    check_agreement = models.FloatField(null=True, blank=True, help_text="Share of them with the same first choice.")
    check_perplexity_ratio = models.FloatField(null=True, blank=True, help_text="Own perplexity over the reference's.")
    check_error = models.CharField(max_length=500, blank=True, help_text="Why the last check failed.")
    checked_at = models.DateTimeField(null=True, blank=True)
    is_default = models.BooleanField(default=False)
    enabled = models.BooleanField(default=True)
    added_at = models.DateTimeField(auto_now_add=True)

    objects = ServedModelQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_model"),
            models.CheckConstraint(condition=Q(is_default=False) | Q(enabled=True), name="default_model_is_enabled"),
            models.CheckConstraint(condition=Q(context_length__gt=0), name="served_model_has_a_context"),
            models.CheckConstraint(
                condition=Q(check_agreement__isnull=True) | Q(check_agreement__gte=0, check_agreement__lte=1),
                name="agreement_is_a_share",
            ),
            models.CheckConstraint(
                condition=Q(check_perplexity_ratio__isnull=True) | Q(check_perplexity_ratio__gt=0),
                name="perplexity_ratio_is_positive",
            ),
            models.CheckConstraint(
                condition=Q(check_method="") | Q(checked_at__isnull=False, check_tokens__gt=0),
                name="passed_check_has_a_time_and_tokens",
            ),
            models.CheckConstraint(
                condition=Q(check_error="") | Q(checked_at__isnull=False, check_method=""),
                name="failed_check_has_a_time_and_no_method",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def check_summary(self) -> str:
        """How the model last compared with its reference, in one line."""
        if self.check_error:
            return f"failed: {self.check_error}"
        if not self.check_method:
            return "not checked"
        figures = f"{self.check_method}, {self.check_tokens} tokens"
        if self.check_agreement is not None:
            figures += f", {self.check_agreement:.0%} agree"
        if self.check_perplexity_ratio is not None:
            figures += f", perplexity ratio {self.check_perplexity_ratio:.3f}"
        return figures
