"""Rows of the work done: sessions, the requests inside them, and every token that was generated.

Guarantees, in the database too, that usage tiles a session without gaps or overlaps, that no more
is tracked than the deposit pays for, and that no token is sealed into a claim twice.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, NoReturn

from django.db import models
from django.db.models import F, Q

from jobs.access_models import (
    ApiKey,
    AuthorizationScheme,
    KeptAnswer,
    KeptAnswerState,
    SessionAuthorization,
)
from nodes.fields import AddressField, Uint256Field

__all__ = [
    "ApiKey",
    "AppendOnlyError",
    "AppendOnlyQuerySet",
    "AuthorizationScheme",
    "DeliveryPath",
    "InferenceRequest",
    "KeptAnswer",
    "KeptAnswerState",
    "RequestState",
    "Session",
    "SessionAuthorization",
    "SessionBinding",
    "SessionQuerySet",
    "SessionState",
    "SocketPresence",
    "TokenUsage",
]


class SessionState(models.TextChoices):
    """Where a session stands. Only an ``OPEN`` session accepts prompts."""

    OPEN = "open"
    CLOSING = "closing"  # no new prompts; leftover tokens are being claimed
    COMPLETED = "completed"
    ENDED_ON_CHAIN = "ended_on_chain"  # the depositor or a timeout ended it before this node did


class SessionBinding(models.TextChoices):
    """What the caller showed whom a job's session was bound to."""

    DEPOSITOR = "depositor"
    AUTHORIZATION = "authorization"
    ADDRESS = "address"
    API_KEY = "api_key", "API key"
    CONNECTION = "connection"
    TOKEN = "token", "session token"


class SessionQuerySet(models.QuerySet["Session"]):
    """Questions about sessions."""

    def with_job(self) -> SessionQuerySet:
        return self.filter(job_id__isnull=False)

    def open(self) -> SessionQuerySet:
        return self.filter(state=SessionState.OPEN)

    def closing(self) -> SessionQuerySet:
        return self.with_job().filter(state=SessionState.CLOSING)

    def owing(self) -> SessionQuerySet:
        """Sessions of jobs that go on or are being closed, with work that is not paid yet."""
        return self.with_job().filter(
            state__in=(SessionState.OPEN, SessionState.CLOSING), tokens_tracked__gt=F("tokens_claimed")
        )

    def unsealed(self) -> SessionQuerySet:
        """Sessions of jobs with counted tokens that no checkpoint holds yet."""
        return self.with_job().filter(tokens_tracked__gt=F("tokens_sealed"))


class Session(models.Model):
    """A conversation with the host; with a ``job_id``, one that a deposit on the chain pays for.

    ``tokens_*`` are completion token ids: tracked ≥ sealed ≥ claimed. ``deposit`` and
    ``price_per_token`` (for ``price_precision`` tokens) are in base units of ``payment_token`` (address
    zero = native coin, wei).
    """

    deployment = models.CharField(max_length=120, blank=True, help_text="Which marketplace on which chain.")
    job_id = Uint256Field(null=True, blank=True)
    client_session_id = models.CharField(max_length=200, blank=True)
    host = AddressField(blank=True)
    depositor = AddressField(blank=True)
    payment_token = AddressField(blank=True)
    deposit = Uint256Field(default=0)
    price_per_token = Uint256Field(default=0)
    price_precision = models.PositiveBigIntegerField(
        default=1, help_text="The price is for this many tokens: 1, or 1000 in newer marketplaces."
    )
    tokens_per_second = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="The rate that the marketplace expects of this job's host."
    )
    first_claim_tokens = models.PositiveBigIntegerField(
        default=0, help_text="The marketplace refuses a first claim of fewer tokens."
    )
    token_budget = models.BigIntegerField(null=True, blank=True, help_text="Tokens that the deposit pays for.")
    job_started_at = models.DateTimeField(null=True, blank=True)
    job_expires_at = models.DateTimeField(null=True, blank=True, help_text="Start + longest duration, chain time.")
    idle_timeout_seconds = models.PositiveBigIntegerField(null=True, blank=True)

    state = models.CharField(max_length=20, choices=SessionState, default=SessionState.OPEN)
    close_reason = models.CharField(max_length=200, blank=True)
    tokens_tracked = models.BigIntegerField(default=0)
    tokens_sealed = models.BigIntegerField(default=0)
    tokens_claimed = models.BigIntegerField(default=0, help_text="Confirmed on the chain.")
    tokens_inherited = models.BigIntegerField(
        default=0, help_text="Already claimed on the chain when this ledger first saw the job."
    )
    last_claim_at = models.DateTimeField(null=True, blank=True, help_text="Block time of the last claim.")
    checkpoint_count = models.PositiveIntegerField(default=0)
    had_socket = models.BooleanField(default=False)
    bound_by = models.CharField(
        max_length=20, choices=SessionBinding, blank=True, help_text="What the first who was let spend has shown."
    )
    bound_to = models.CharField(
        max_length=64, blank=True, help_text="The address, key, authorisation or connection that it was."
    )

    created_at = models.DateTimeField(auto_now_add=True)
    last_activity_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)

    objects = SessionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["state", "last_activity_at"], name="session_state_activity"),
            models.Index(fields=["client_session_id"], name="session_client_id"),
            models.Index(fields=["job_id"], name="session_job_id"),
            models.Index(fields=["id"], condition=Q(tokens_tracked__gt=F("tokens_sealed")), name="session_unsealed"),
            models.Index(fields=["id"], condition=Q(tokens_tracked__gt=F("tokens_claimed")), name="session_owing"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["deployment", "job_id"], condition=Q(job_id__isnull=False), name="one_session_per_job"
            ),
            models.CheckConstraint(condition=Q(tokens_claimed__gte=0), name="claimed_is_not_negative"),
            models.CheckConstraint(
                condition=Q(tokens_claimed__lte=F("tokens_sealed")), name="claimed_at_most_what_is_sealed"
            ),
            models.CheckConstraint(
                condition=Q(tokens_sealed__lte=F("tokens_tracked")), name="sealed_at_most_what_is_tracked"
            ),
            models.CheckConstraint(
                condition=Q(token_budget__isnull=True) | Q(tokens_tracked__lte=F("token_budget")),
                name="tracked_at_most_what_the_deposit_pays",
            ),
            models.CheckConstraint(condition=Q(price_precision__gt=0), name="a_price_is_for_some_tokens"),
            models.CheckConstraint(
                condition=Q(job_id__isnull=True) | Q(token_budget__isnull=False), name="a_job_has_a_budget"
            ),
            models.CheckConstraint(
                condition=Q(bound_by="", bound_to="") | (~Q(bound_by="") & ~Q(bound_to="")),
                name="a_bound_session_says_to_whom",
            ),
        ]

    def __str__(self) -> str:
        return f"job {self.job_id}" if self.job_id is not None else f"session {self.pk} (no job)"

    @property
    def tokens_unsealed(self) -> int:
        """Counted tokens that no checkpoint holds yet."""
        return self.tokens_tracked - self.tokens_sealed

    @property
    def first_claim_minimum(self) -> int:
        """What the next claim must reach if it is the job's first; 0 once there is one."""
        return 0 if self.tokens_sealed else self.first_claim_tokens

    def worth(self, tokens: int) -> int:
        """What the marketplace charges for ``tokens`` of this job, base units, rounded down as it does."""
        return tokens * self.price_per_token // self.price_precision

    @property
    def exposure(self) -> int:
        """What counted tokens are worth that the chain has not confirmed yet, base units."""
        return self.worth(self.tokens_tracked) - self.worth(self.tokens_claimed)

    @property
    def tokens_left(self) -> int | None:
        """Tokens that the deposit still pays for; ``None`` without a job."""
        return None if self.token_budget is None else self.token_budget - self.tokens_tracked


class SocketPresence(models.Model):
    """A WebSocket that is bound to a session. A row whose ``seen_at`` is old belongs to a dead process."""

    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="sockets")
    connection_id = models.UUIDField(default=uuid.uuid4)
    seen_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["session", "connection_id"], name="one_presence_per_socket_and_session")
        ]

    def __str__(self) -> str:
        return f"socket {self.connection_id} on {self.session}"


class DeliveryPath(models.TextChoices):
    """How a completion reached its client."""

    HTTP_JSON = "http_json", "HTTP, JSON"
    HTTP_SSE = "http_sse", "HTTP, server-sent events"
    WS_INFERENCE = "ws_inference", "WebSocket, inference"
    WS_PROMPT = "ws_prompt", "WebSocket, prompt"
    WS_ENCRYPTED = "ws_encrypted", "WebSocket, encrypted"
    OPENAI_JSON = "openai_json", "OpenAI API, JSON"
    OPENAI_SSE = "openai_sse", "OpenAI API, server-sent events"


class RequestState(models.TextChoices):
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class InferenceRequest(models.Model):
    """One prompt and what came of it. Neither prompt nor completion text is kept."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    session = models.ForeignKey(Session, on_delete=models.PROTECT, related_name="requests")
    api_key = models.ForeignKey(
        ApiKey, on_delete=models.PROTECT, null=True, blank=True, related_name="requests", db_index=False
    )
    client_request_id = models.CharField(max_length=200, blank=True)
    path = models.CharField(max_length=20, choices=DeliveryPath)
    model = models.CharField(max_length=120)
    max_tokens = models.PositiveIntegerField()
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0, help_text="Token ids counted for this request.")
    unpaid_tokens = models.PositiveIntegerField(
        default=0, help_text="Generated after the deposit was used up by requests running beside it."
    )
    state = models.CharField(max_length=20, choices=RequestState, default=RequestState.RUNNING)
    finish_reason = models.CharField(max_length=20, blank=True)
    error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["state", "created_at"], name="request_state_created"),
            # As the admin's list is sorted: by the time, then by the key.
            models.Index(fields=["-created_at", "-id"], name="request_newest"),
            models.Index(
                fields=["api_key", "created_at"], condition=Q(api_key__isnull=False), name="request_api_key_created"
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state=RequestState.RUNNING) | Q(finished_at__isnull=False),
                name="an_ended_request_has_its_time",
            )
        ]

    def __str__(self) -> str:
        return str(self.id)


class AppendOnlyError(TypeError):
    """Somebody tried to change or delete a ledger row."""


class AppendOnlyQuerySet(models.QuerySet[Any]):
    """Rows that are written once: the queryset refuses to change or delete them."""

    def update(self, **kwargs: Any) -> NoReturn:
        raise AppendOnlyError(f"{self.model.__name__} rows are append-only")

    def delete(self) -> NoReturn:
        raise AppendOnlyError(f"{self.model.__name__} rows are append-only")


class TokenUsage(models.Model):
    """Completion tokens ``[first_index, first_index + count)`` of a session. Written once, never changed."""

    session = models.ForeignKey(Session, on_delete=models.PROTECT, related_name="usage")
    request = models.ForeignKey(InferenceRequest, on_delete=models.PROTECT, related_name="usage")
    first_index = models.BigIntegerField()
    count = models.PositiveIntegerField()
    path = models.CharField(max_length=20, choices=DeliveryPath)
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField(auto_now_add=True)

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        ordering = ["session", "first_index"]
        verbose_name_plural = "token usage"
        constraints = [
            models.UniqueConstraint(fields=["session", "first_index"], name="one_usage_row_per_token_index"),
            models.CheckConstraint(condition=Q(count__gt=0), name="usage_counts_something"),
            models.CheckConstraint(condition=Q(first_index__gte=0), name="usage_index_is_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.count} tokens at {self.first_index} of {self.session}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnlyError("TokenUsage rows are append-only")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AppendOnlyError("TokenUsage rows are append-only")
