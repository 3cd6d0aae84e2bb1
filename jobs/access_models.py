"""Rows about who may use the host: API keys, access to jobs, and answers kept for a repeated request.

Guarantees, in the database too, that a key, a token and a signed authorisation each stand for one row,
and that a repeated request finds one answer. Secrets are kept as SHA-256 only. ``jobs.models`` imports
these, so that Django finds them; nothing else need import this module.
"""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Length
from django.db.models.lookups import Exact

from nodes.fields import AddressField, Hash32Field, Uint256Field


def _is_sha256(field: str, *, name: str) -> models.CheckConstraint:
    return models.CheckConstraint(condition=Exact(Length(field), 64), name=name)


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """Questions about API keys."""

    def usable(self, *, now: datetime) -> ApiKeyQuerySet:
        """Neither revoked nor expired."""
        return self.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=now), revoked_at__isnull=True)


class ApiKey(models.Model):
    """A customer of the operator who pays for no job. The key itself is shown once and never stored.

    ``tokens_per_day`` counts prompt and completion token ids of a UTC day. Limits that are ``None`` are
    the host's own (requests and tokens per minute), or there is none (tokens per day).
    """

    name = models.CharField(max_length=100, help_text="Whose key it is.")
    prefix = models.CharField(max_length=16, unique=True, help_text="The beginning of the key, to tell keys apart.")
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    may_infer = models.BooleanField(default=True, help_text="Prompts on every interface.")
    may_list_models = models.BooleanField(default=True, help_text="The models, and text to tokens and back.")
    may_read_usage = models.BooleanField(default=False, help_text="The usage of every key, not only its own.")
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="To the minute.")

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name = "API key"
        constraints = [
            _is_sha256("key_hash", name="an_api_key_is_kept_as_sha256"),
            models.CheckConstraint(
                condition=Q(may_infer=True) | Q(may_list_models=True) | Q(may_read_usage=True),
                name="an_api_key_may_do_something",
            ),
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(expires_at__gt=F("created_at")),
                name="an_api_key_expires_after_it_was_made",
            ),
            models.CheckConstraint(
                condition=(Q(requests_per_minute__isnull=True) | Q(requests_per_minute__gt=0))
                & (Q(tokens_per_minute__isnull=True) | Q(tokens_per_minute__gt=0))
                & (Q(tokens_per_day__isnull=True) | Q(tokens_per_day__gt=0)),
                name="limits_of_an_api_key_allow_something",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class AuthorizationScheme(models.TextChoices):
    """How access to a job was shown."""

    EIP191 = "eip191", "signed text"
    EIP712 = "eip712", "signed typed data"
    FC1 = "fc1-session-auth-v1", "signed by a platform"
    FIRST_CLAIM = "first-claim", "first to name the job"


class SessionAuthorization(models.Model):
    """Access to one job until ``expires_at``, for ``client_address`` and for the holder of a token.

    ``message_hash`` is what was signed, where that may be used once only.
    """

    deployment = models.CharField(max_length=120)
    job_id: Uint256Field[int, int] = Uint256Field()
    scheme = models.CharField(max_length=24, choices=AuthorizationScheme)
    signer = AddressField(blank=True)
    client_address = AddressField(blank=True)
    message_hash = Hash32Field(blank=True)
    token_hash = models.CharField(max_length=64, blank=True, editable=False)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["deployment", "job_id"], name="authorization_job")]
        constraints = [
            models.UniqueConstraint(
                fields=["message_hash"], condition=~Q(message_hash=""), name="a_signed_message_is_used_once"
            ),
            models.UniqueConstraint(
                fields=["token_hash"], condition=~Q(token_hash=""), name="a_session_token_stands_for_one_job"
            ),
            models.CheckConstraint(
                condition=Q(token_hash="") | Q(Exact(Length("token_hash"), 64)),
                name="a_session_token_is_kept_as_sha256",
            ),
            models.CheckConstraint(
                condition=~Q(token_hash="") | ~Q(client_address=""), name="an_authorization_is_for_somebody"
            ),
            models.CheckConstraint(
                condition=Q(scheme="first-claim") | ~Q(signer=""), name="an_authorization_was_signed"
            ),
            models.CheckConstraint(
                condition=Q(expires_at__gt=F("created_at")), name="an_authorization_expires_after_it_was_made"
            ),
        ]

    def __str__(self) -> str:
        return f"access to job {self.job_id} until {self.expires_at.isoformat()}"


class KeptAnswerState(models.TextChoices):
    IN_FLIGHT = "in_flight"
    KEPT = "kept"
    NOT_KEPT = "not_kept"  # it was generated and billed, but cannot be given again


class KeptAnswer(models.Model):
    """The answer to a request with an ``Idempotency-Key``. Found by caller and key; of the body a hash is kept.

    The text of the answer is kept because the client asked for it, and goes with the row.
    """

    caller = models.CharField(max_length=64, help_text="SHA-256 of who asked.")
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of address and body.")
    state = models.CharField(max_length=10, choices=KeptAnswerState, default=KeptAnswerState.IN_FLIGHT)
    reason = models.CharField(max_length=200, blank=True, help_text="Why the answer cannot be given again.")
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    content_type = models.CharField(max_length=100, blank=True)
    body = models.BinaryField(blank=True)
    created_at = models.DateTimeField(db_index=True)
    alive_at = models.DateTimeField(help_text="When the process that answers last said that it does.")

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["caller", "key"], name="one_answer_per_caller_and_key"),
            _is_sha256("caller", name="a_caller_is_kept_as_sha256"),
            _is_sha256("fingerprint", name="a_fingerprint_is_sha256"),
            models.CheckConstraint(
                condition=Q(state="kept", status__isnull=False) | (~Q(state="kept") & Q(status__isnull=True)),
                name="a_kept_answer_has_a_status",
            ),
            models.CheckConstraint(
                condition=(Q(state="not_kept") & ~Q(reason="")) | (~Q(state="not_kept") & Q(reason="")),
                name="an_answer_not_kept_has_its_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.state} answer to {self.key[:40]}"
