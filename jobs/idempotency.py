"""``Idempotency-Key``: a request that is sent again is answered again, and neither generated nor billed twice.

Guarantees that of all requests of one caller with one key at most one ever generates, for 24 hours and
across processes and crashes. The same body gets the kept answer; another body, a request still under way
and an answer that was not kept (streamed, too long, cut off) get a 409 that says which. A refusal from
before anything was generated is not kept: the key may be used again. A client that sends a key asks that
its answer be kept, so one that goes away does not stop a generation that is not streamed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from django.db import DatabaseError, IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone

from jobs.callers import Caller
from jobs.models import KeptAnswer, KeptAnswerState
from jobs.protocol import RequestError, invalid
from jobs.stored import stored
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
KEPT_FOR = timedelta(hours=24)
MAX_ANSWER_BYTES = 256 * 1024
MAX_ANSWERS = 50_000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# A process that answers says so every third of this; one that no longer does has ended.
_LEASE = timedelta(seconds=60)
_RETRY_AFTER_SECONDS = 2

Produce = Callable[[], Awaitable[HttpResponseBase]]
T = TypeVar("T")


@dataclass(slots=True)
class _Attempt:
    """The one request of its key that may generate. ``begun`` once a token may have been billed."""

    row_id: int
    begun: bool = False


# Set around the view's own work, so that no view can forget to hand it on: one that did would bill twice.
_attempt: ContextVar[_Attempt | None] = ContextVar("idempotent_attempt", default=None)
_going_on: set[asyncio.Task[Any]] = set()


async def answer_once(request: HttpRequest, *, caller: Caller, stream: bool, produce: Produce) -> HttpResponseBase:
    """``await produce()``, or what it gave when this caller sent this key before. Without a key, just the former.

    ``produce`` starts the generations and returns the response, or raises ``RequestError``. ``stream`` says
    that it returns a ``StreamingHttpResponse``. Raises ``RequestError`` (400 for a malformed key, 409).
    """
    key = request.headers.get(HEADER)
    if key is None:
        return await produce()
    if not _KEY.fullmatch(key):
        raise invalid(f"{HEADER} must be 1 to 255 printable ASCII characters without spaces.", field=HEADER)
    fingerprint = hashlib.sha256(request.path.encode() + b"\0" + request.body).hexdigest()
    claiming = asyncio.ensure_future(stored(_claim)(caller=_hash_of(caller), key=key, fingerprint=fingerprint))
    try:
        found = await asyncio.shield(claiming)
    except asyncio.CancelledError:
        # The database goes on with it: a row that nobody settled would keep the key for a day.
        _keep_going(_give_up(claiming))
        raise
    if isinstance(found, HttpResponse):
        return found
    attempt = _Attempt(found)
    if stream:
        return await _produced_stream(attempt, produce)
    return await asyncio.shield(_keep_going(_produced(attempt, produce)))


def began() -> None:
    """Said by whatever generates, before the first token may be billed: from now on the key is used up."""
    if (attempt := _attempt.get()) is not None:
        attempt.begun = True


def forget_old(*, now: datetime) -> int:
    """Delete what is older than a day, and the oldest where there are more than ``MAX_ANSWERS``."""
    old = KeptAnswer.objects.filter(created_at__lt=now - KEPT_FOR)
    deleted, _ = old.delete()
    newest = KeptAnswer.objects.order_by("-pk").values_list("pk", flat=True)[MAX_ANSWERS : MAX_ANSWERS + 1].first()
    if newest is not None:
        more, _ = KeptAnswer.objects.filter(pk__lte=newest).exclude(state=KeptAnswerState.IN_FLIGHT).delete()
        deleted += more
    return deleted


def _claim(*, caller: str, key: str, fingerprint: str) -> int | HttpResponse:
    """The id of a new row, or the kept answer. Raises ``RequestError`` (409)."""
    now = timezone.now()
    KeptAnswer.objects.filter(caller=caller, key=key, created_at__lt=now - KEPT_FOR).delete()
    try:
        with transaction.atomic():
            row = KeptAnswer.objects.create(
                caller=caller, key=key, fingerprint=fingerprint, created_at=now, alive_at=now
            )
    except IntegrityError:
        return _found_again(caller=caller, key=key, fingerprint=fingerprint, now=now)
    return row.pk


def _found_again(*, caller: str, key: str, fingerprint: str, now: datetime) -> HttpResponse:
    row = KeptAnswer.objects.filter(caller=caller, key=key).first()
    if row is None:
        # Refused and released in this very moment: as good as still under way.
        raise _in_flight()
    if row.fingerprint != fingerprint:
        raise RequestError(
            code="idempotency_conflict",
            message=f"This {HEADER} was sent before with another body or to another address. Use a new key.",
            status=409,
        )
    if row.state == KeptAnswerState.IN_FLIGHT:
        if row.alive_at >= now - _LEASE:
            raise _in_flight()
        row.reason = "the process that gave it ended"
        _end(row.pk, reason=row.reason)
    if row.state == KeptAnswerState.KEPT:
        return HttpResponse(
            bytes(row.body),
            status=row.status,
            content_type=row.content_type,
            headers={REPLAYED_HEADER: "true"},
        )
    raise RequestError(
        code="idempotency_answer_not_kept",
        message=f"A request with this {HEADER} was answered, but the answer cannot be given again: {row.reason}. "
        "It is not generated a second time; send a new key for a new answer.",
        status=409,
        details={"reason": row.reason},
    )


def _in_flight() -> RequestError:
    return RequestError(
        code="idempotency_in_flight",
        message=f"A request with this {HEADER} is being answered. Try again shortly for its answer.",
        status=409,
        retry_after=_RETRY_AFTER_SECONDS,
    )


async def _give_up(claiming: asyncio.Task[int | HttpResponse]) -> None:
    """The client went away before anything was asked of the engine: its key may be used again."""
    found = await claiming
    if isinstance(found, int):
        await _stored_if_possible(_release, found)


async def _produced(attempt: _Attempt, produce: Produce) -> HttpResponseBase:
    async with _settled(attempt), _alive(attempt.row_id):
        response = await produce()
    await _kept(attempt, response)
    return response


async def _kept(attempt: _Attempt, response: HttpResponseBase) -> None:
    if response.status_code >= 400 and not attempt.begun:
        await _stored_if_possible(_release, attempt.row_id)
    elif not isinstance(response, HttpResponse):
        await _stored_if_possible(_end, attempt.row_id, reason="it was streamed")
    elif len(response.content) > MAX_ANSWER_BYTES:
        await _stored_if_possible(_end, attempt.row_id, reason=f"it is longer than {MAX_ANSWER_BYTES} bytes")
    else:
        await _stored_if_possible(
            _keep,
            attempt.row_id,
            status=response.status_code,
            content_type=response.headers.get("Content-Type", ""),
            body=response.content,
        )


async def _produced_stream(attempt: _Attempt, produce: Produce) -> HttpResponseBase:
    # In the task of the request itself: when that ends, the view's generations are stopped.
    async with _settled(attempt), _alive(attempt.row_id):
        response = await produce()
    if isinstance(response, StreamingHttpResponse) and response.is_async:
        pieces = cast("AsyncIterator[bytes]", response.streaming_content)
        response.streaming_content = _watched(attempt, pieces)
    else:
        await _kept(attempt, response)
    return response


async def _watched(attempt: _Attempt, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    refused = False
    try:
        async with _alive(attempt.row_id):
            async for piece in pieces:
                yield piece
        # A stream may begin before its generation does, and then say why there is none.
        refused = not attempt.begun
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
        if refused:
            await _stored_if_possible(_release, attempt.row_id)
        else:
            await _stored_if_possible(_end, attempt.row_id, reason="it was streamed")


@asynccontextmanager
async def _settled(attempt: _Attempt) -> AsyncIterator[None]:
    """Within it the attempt is the current one; what fails within it settles the row."""
    token = _attempt.set(attempt)
    try:
        yield
    except asyncio.CancelledError:
        # What was asked of the engine may still begin, and is then billed.
        await asyncio.shield(_stored_if_possible(_end, attempt.row_id, reason="its client went away"))
        raise
    except Exception as failure:
        if attempt.begun:
            said = failure.message if isinstance(failure, RequestError) else "the host failed to answer"
            await _stored_if_possible(_end, attempt.row_id, reason=f"it failed: {said}")
        else:
            await _stored_if_possible(_release, attempt.row_id)
        raise
    finally:
        _attempt.reset(token)


@asynccontextmanager
async def _alive(row_id: int) -> AsyncIterator[None]:
    """Within it the row says that its request is being answered."""
    beating = asyncio.ensure_future(_beat(row_id))
    try:
        yield
    finally:
        beating.cancel()


async def _beat(row_id: int) -> None:
    while True:
        await asyncio.sleep(_LEASE.total_seconds() / 3)
        await _stored_if_possible(_say_alive, row_id)


async def _stored_if_possible(work: Callable[..., None], *args: object, **kwargs: object) -> None:
    """A row that stays in flight is found again by its lease, and then as an answer that was not kept."""
    try:
        await in_database_thread(work)(*args, **kwargs)
    except DatabaseError as failure:
        logger.error("an idempotent answer could not be kept: %s", failure)


def _keep(row_id: int, *, status: int, content_type: str, body: bytes) -> None:
    KeptAnswer.objects.filter(pk=row_id).update(
        state=KeptAnswerState.KEPT, reason="", status=status, content_type=content_type[:100], body=body
    )


def _end(row_id: int, *, reason: str) -> None:
    in_flight = KeptAnswer.objects.filter(pk=row_id, state=KeptAnswerState.IN_FLIGHT)
    in_flight.update(state=KeptAnswerState.NOT_KEPT, reason=reason[:200])


def _release(row_id: int) -> None:
    KeptAnswer.objects.filter(pk=row_id).delete()


def _say_alive(row_id: int) -> None:
    KeptAnswer.objects.filter(pk=row_id, state=KeptAnswerState.IN_FLIGHT).update(alive_at=timezone.now())


def _keep_going(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """``work`` in a task that ends by itself, whoever waits for it."""
    task = asyncio.ensure_future(work)
    _going_on.add(task)
    task.add_done_callback(_forget)
    return task


def _forget(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None and not isinstance(failure, RequestError):
        logger.error("an answer that was to be kept failed", exc_info=failure)


def _hash_of(caller: Caller) -> str:
    """Who asks, by the strongest of what it has shown."""
    if caller.api_key is not None:
        who = f"key:{caller.api_key}"
    elif caller.addresses:
        who = "address:" + ",".join(sorted(caller.addresses))
    elif caller.authorizations:
        who = f"authorization:{min(caller.authorizations)}"
    else:
        who = f"remote:{caller.remote_address}"
    return hashlib.sha256(who.encode()).hexdigest()
