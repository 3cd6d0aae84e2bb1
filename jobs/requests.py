"""Rows of requests: begun before the engine is asked, ended when their books are closed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from jobs import api_keys
from jobs.models import DeliveryPath, InferenceRequest, RequestState
from jobs.named_models import named_model
from jobs.sessions import OpenedSession
from nodes.models import ServedModel

Opening = Callable[[], OpenedSession]
"""Opens a session in the transaction around it. Raises ``RequestError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunRequest:
    """A request that may generate: its model, its session, and the tokens that its API key's quota leaves it."""

    model: ServedModel
    opened: OpenedSession
    quota: int | None


def open_and_begin(
    row_id: uuid.UUID,
    *,
    opening: Opening,
    api_key: int | None,
    client_request_id: str,
    path: DeliveryPath,
    model: str,
    max_tokens: int,
) -> BegunRequest:
    """``opening`` and ``begin`` in one commit, which waits for the disk: both are done, or neither.

    ``model`` is the client's name for it. Raises ``RequestError``.
    """
    with transaction.atomic():
        served = named_model(model)
        opened = opening()
        quota = begin(
            row_id,
            session_id=opened.id,
            api_key=api_key,
            client_request_id=client_request_id,
            path=path,
            model=served.id,
            max_tokens=max_tokens,
        )
    return BegunRequest(model=served, opened=opened, quota=quota)


def begin(
    row_id: uuid.UUID,
    *,
    session_id: int,
    api_key: int | None,
    client_request_id: str,
    path: DeliveryPath,
    model: str,
    max_tokens: int,
) -> int | None:
    """Add the row. Returns the tokens that the API key's quota leaves it, ``None`` without a quota.

    Raises ``RequestError`` if the quota is used up, or the key revoked meanwhile.
    """
    with transaction.atomic():
        left = None if api_key is None else api_keys.admit(api_key)
        InferenceRequest.objects.create(
            id=row_id,
            session_id=session_id,
            api_key_id=api_key,
            client_request_id=client_request_id[:200],
            path=path,
            model=model,
            max_tokens=max_tokens,
        )
    return left


def finish(row_id: uuid.UUID, *, state: RequestState, finish_reason: str, error: str, prompt_tokens: int) -> None:
    """Close the row. Its tokens are counted by ``metering``."""
    InferenceRequest.objects.filter(pk=row_id).update(
        state=state,
        finish_reason=finish_reason,
        error=error[:500],
        prompt_tokens=prompt_tokens,
        finished_at=timezone.now(),
    )
