"""API keys: making, listing, revoking and recognising them, and the quotas that they carry.

Guarantees that a key is shown once and kept as SHA-256 only (it has 256 random bits, so that no salt
and no slow hash are needed), that a revoked or expired key opens nothing, and that a quota is counted
from the rows of the requests themselves.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.db import transaction
from django.db.models import Case, F, Q, Sum, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from jobs.models import ApiKey, InferenceRequest, RequestState
from jobs.protocol import RequestError

KEY_START = "fab_"
_SHOWN_CHARACTERS = 12
_USE_IS_RECORDED_EVERY = timedelta(minutes=1)


class Scope(StrEnum):
    """What an API key may be used for."""

    INFERENCE = "inference"
    MODELS = "models"
    USAGE = "usage"


_FLAGS = {Scope.INFERENCE: "may_infer", Scope.MODELS: "may_list_models", Scope.USAGE: "may_read_usage"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """``secret`` is the key itself, which is nowhere else."""

    secret: str
    row: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``None``: as the host limits anybody (per minute), or not at all (per day)."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


NO_LIMITS = Limits()


def create(
    *, name: str, scopes: Collection[Scope], lifetime: timedelta | None = None, limits: Limits = NO_LIMITS
) -> NewKey:
    """A new key. Its secret is in the result and cannot be had again."""
    row = ApiKey(
        name=name,
        **{flag: scope in scopes for scope, flag in _FLAGS.items()},
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_per_day=limits.tokens_per_day,
        expires_at=None if lifetime is None else timezone.now() + lifetime,
    )
    return NewKey(secret=issue(row), row=row)


def issue(row: ApiKey) -> str:
    """Save a new row with a key of its own; returns the secret, which cannot be had again."""
    secret = KEY_START + secrets.token_urlsafe(32)
    row.prefix, row.key_hash = secret[:_SHOWN_CHARACTERS], sha256_of(secret)
    row.created_at = timezone.now()
    row.save(force_insert=True)
    return secret


def revoke(key_id: int) -> bool:
    """Refuse the key from now on. ``False`` if it was revoked before."""
    return bool(ApiKey.objects.filter(pk=key_id, revoked_at__isnull=True).update(revoked_at=timezone.now()))


def scopes_of(row: ApiKey) -> tuple[Scope, ...]:
    return tuple(scope for scope, flag in _FLAGS.items() if getattr(row, flag))


def recognise(secret: str, *, scope: Scope | None) -> ApiKey:
    """The usable key that ``secret`` is; ``None`` asks for no scope.

    Raises ``RequestError`` (401 unknown, 403 wrong scope).
    """
    now = timezone.now()
    row = ApiKey.objects.usable(now=now).filter(key_hash=sha256_of(secret)).first()
    if row is None:
        raise RequestError(
            code="invalid_api_key",
            message="This API key is unknown, revoked or expired. Ask the host's operator for a new one.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
    if scope is not None and scope not in scopes_of(row):
        raise RequestError(
            code="api_key_scope",
            message=f"The API key {row.prefix}… may not be used for {scope}. Ask the host's operator for one that may.",
            status=403,
            details={"scope": scope.value, "scopes": [own.value for own in scopes_of(row)]},
        )
    if row.last_used_at is None or row.last_used_at < now - _USE_IS_RECORDED_EVERY:
        ApiKey.objects.filter(pk=row.pk).update(last_used_at=now)
    return row


def admit(key_id: int) -> int | None:
    """The tokens that the key's quota still allows today, ``None`` without one. Raises ``RequestError``.

    Call it in the transaction that adds the request's row: it locks the key until that ends, so that requests
    which begin together cannot each take what is left. A running request counts with all it may generate.
    """
    now = timezone.now()
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().filter(pk=key_id).first()
        if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
            raise RequestError(
                code="invalid_api_key",
                message="This API key was revoked or has expired. Ask the host's operator for a new one.",
                status=401,
            )
        if row.tokens_per_day is None:
            return None
        used, reserved = tokens_today(key_id, now=now)
    left = row.tokens_per_day - used - reserved
    if left <= 0:
        raise _quota_exceeded(row, used=used, now=now)
    return left


def _quota_exceeded(row: ApiKey, *, used: int, now: datetime) -> RequestError:
    quota = row.tokens_per_day or 0
    waiting = used < quota
    wait = "Requests that are running have taken the rest." if waiting else "It begins anew at midnight UTC."
    midnight = _day(now) + timedelta(days=1)
    return RequestError(
        code="quota_exceeded",
        message=f"The API key {row.prefix}… may use {quota} tokens a day and has used {used}. {wait}",
        status=429,
        details={"tokens_per_day": quota, "tokens_used": used},
        retry_after=5 if waiting else max(1, int((midnight - now).total_seconds())),
    )


def tokens_today(key_id: int, *, now: datetime) -> tuple[int, int]:
    """Prompt and completion tokens of the key's requests of this UTC day, and what running ones may still add."""
    today = InferenceRequest.objects.filter(api_key_id=key_id, created_at__gte=_day(now))
    running = Q(state=RequestState.RUNNING)
    sums = today.aggregate(
        used=Coalesce(Sum(F("prompt_tokens") + F("completion_tokens")), Value(0)),
        reserved=Coalesce(Sum(Case(When(running, then=F("max_tokens") - F("completion_tokens")))), Value(0)),
    )
    return int(sums["used"]), int(sums["reserved"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a key has used in this UTC day; ``reserved`` are tokens that running requests may still add."""

    key: ApiKey
    requests: int
    tokens: int
    reserved: int


def usage(*, key_id: int | None) -> list[Usage]:
    """The usage of one key, or of every key that is not revoked."""
    now = timezone.now()
    rows = ApiKey.objects.filter(revoked_at__isnull=True) if key_id is None else ApiKey.objects.filter(pk=key_id)
    found = []
    for row in rows:
        tokens, reserved = tokens_today(row.pk, now=now)
        requests = InferenceRequest.objects.filter(api_key_id=row.pk, created_at__gte=_day(now)).count()
        found.append(Usage(key=row, requests=requests, tokens=tokens, reserved=reserved))
    return found


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _day(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)
