"""Metering: the only writer of token usage.

Guarantees that every token the engine produced for a request is recorded once, with the same
rule on every path; that usage tiles the session without gaps; and that no more is recorded as
billable than the deposit pays for. Recording outlives replies, sockets and restarts: of a request at
most one window of ``WINDOW_TOKENS`` tokens, or of ``WINDOW_SECONDS``, is in memory at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID
from weakref import WeakKeyDictionary

from django.db import DatabaseError, DataError, IntegrityError, transaction
from django.db.models import Case, F, Value, When
from django.utils import timezone

from jobs.inference.engine import TokenChunk
from jobs.models import DeliveryPath, InferenceRequest, Session, TokenUsage
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

WINDOW_TOKENS = 16
WINDOW_SECONDS = 0.25

_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.2
_OF_ONE_ROW = (IntegrityError, DataError, Session.DoesNotExist)


class MeteringUnavailable(Exception):
    """Usage could not be recorded. Generation must stop; the unrecorded count is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """``count`` completion token ids of one request."""

    session_id: int
    request_id: UUID
    count: int
    path: DeliveryPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a count: ``billable`` + ``unpaid`` token ids, and what the deposit has left."""

    billable: int
    unpaid: int
    tokens_left: int | None


def record_usage(*, session_id: int, request_id: UUID, count: int, path: DeliveryPath) -> Recorded:
    """Append ``count`` completion token ids to the session's ledger."""
    return record_all([Usage(session_id=session_id, request_id=request_id, count=count, path=path)])[0]


def record_all(usages: Sequence[Usage]) -> list[Recorded]:
    """Append counts to their sessions' ledgers, all of them or none; the results in the same order.

    Raises ``DatabaseError``, and ``Session.DoesNotExist`` where a session is gone.
    """
    with transaction.atomic():
        wanted = {usage.session_id for usage in usages}
        # Locked in one order, so that two processes never wait for each other.
        locked = Session.objects.select_for_update().filter(pk__in=wanted).order_by("pk")
        sessions = {row.pk: row for row in locked.only("tokens_tracked", "token_budget")}
        if len(sessions) < len(wanted):
            raise Session.DoesNotExist(f"session {min(wanted - set(sessions))} is gone")
        rows, recorded = [], []
        for usage in usages:
            session = sessions[usage.session_id]
            left = session.tokens_left
            billable = usage.count if left is None else min(usage.count, left)
            if billable:
                rows.append(_row(usage, first_index=session.tokens_tracked, billable=billable))
                session.tokens_tracked += billable
            recorded.append(Recorded(billable=billable, unpaid=usage.count - billable, tokens_left=session.tokens_left))
        TokenUsage.objects.bulk_create(rows)
        _count(usages, rows, recorded, now=timezone.now())
    return recorded


def _row(usage: Usage, *, first_index: int, billable: int) -> TokenUsage:
    return TokenUsage(
        session_id=usage.session_id,
        request_id=usage.request_id,
        first_index=first_index,
        count=billable,
        path=usage.path,
    )


def _count(usages: Sequence[Usage], rows: Sequence[TokenUsage], recorded: Sequence[Recorded], *, now: datetime) -> None:
    """Bring the counters of sessions and requests up to what the rows say."""
    tracked: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        tracked[row.session_id] += row.count
    if tracked:
        active = Session.objects.filter(pk__in=tracked)
        active.update(tokens_tracked=F("tokens_tracked") + _by_key(tracked), last_activity_at=now)
    completed: defaultdict[UUID, int] = defaultdict(int)
    unpaid: defaultdict[UUID, int] = defaultdict(int)
    for usage, share in zip(usages, recorded, strict=True):
        completed[usage.request_id] += usage.count
        if share.unpaid:
            unpaid[usage.request_id] += share.unpaid
    InferenceRequest.objects.filter(pk__in=completed).update(
        completion_tokens=F("completion_tokens") + _by_key(completed)
    )
    if unpaid:
        InferenceRequest.objects.filter(pk__in=unpaid).update(unpaid_tokens=F("unpaid_tokens") + _by_key(unpaid))


def _by_key(amounts: Mapping[int, int] | Mapping[UUID, int]) -> Case | Value:
    """The amount of the row's primary key."""
    if len(set(amounts.values())) == 1:
        return Value(next(iter(amounts.values())))
    return Case(*(When(pk=key, then=Value(amount)) for key, amount in amounts.items()))


def _record_apart(usages: Sequence[Usage]) -> list[Recorded | Exception]:
    """``record_all``; where one of several is refused by the database, the others are recorded without it."""
    try:
        return list(record_all(usages))
    except _OF_ONE_ROW as refused:
        if len(usages) == 1:
            return [refused]
        return [each for usage in usages for each in _record_apart([usage])]


class _Recorder:
    """Records what the requests of one event loop have counted: in one transaction, whatever waits for it.

    The rows of a batch fill their windows at the same moment, and a commit waits for the disk.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Usage, asyncio.Future[Recorded]]] = []
        self._recording: asyncio.Task[None] | None = None
        self._pending: set[Meter] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._sweeping: set[asyncio.Task[None]] = set()

    async def record(self, usage: Usage) -> Recorded:
        """Raises what the database raised."""
        done: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.append((usage, done))
        if self._recording is None or self._recording.done():
            self._recording = asyncio.ensure_future(self._record())
        return await done

    async def _record(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                results = await in_database_thread(_record_apart)([usage for usage, _ in taken])
            except Exception as failure:  # noqa: BLE001 - handed to everybody who waits
                results = [failure] * len(taken)
            for (_, done), result in zip(taken, results, strict=True):
                if done.cancelled():
                    continue
                if isinstance(result, Exception):
                    done.set_exception(result)
                else:
                    done.set_result(result)

    def due(self, meter: Meter) -> None:
        """See to it that ``meter`` is flushed within ``WINDOW_SECONDS``."""
        self._pending.add(meter)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._flush_all)

    def _flush_all(self) -> None:
        self._sweep = None
        meters, self._pending = self._pending, set()
        for meter in meters:
            task = asyncio.ensure_future(meter.flush_late())
            self._sweeping.add(task)
            task.add_done_callback(self._sweeping.discard)


_RECORDERS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Recorder] = WeakKeyDictionary()


def _recorder() -> _Recorder:
    return _RECORDERS.setdefault(asyncio.get_running_loop(), _Recorder())


@dataclass(slots=True, kw_only=True, eq=False)
class Meter:
    """Counts the tokens of one request and records them in windows.

    ``tokens_left`` is ``None`` where no deposit limits the session, and 0 once it is used up.
    """

    session_id: int
    request_id: UUID
    path: DeliveryPath
    tokens_left: int | None
    counted: int = 0
    _pending: int = 0
    _recording: int = 0
    _flushing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failure: MeteringUnavailable | None = None

    async def count(self, tokens: int) -> None:
        """Count ``tokens`` more token ids; records them if the window is full. Raises ``MeteringUnavailable``."""
        self.counted += tokens
        if tokens and not self._pending:
            _recorder().due(self)
        self._pending += tokens
        if self._pending + self._recording >= WINDOW_TOKENS:
            await self.flush()
        if self._failure is not None:
            raise self._failure

    async def flush_late(self) -> None:
        """Record what is pending; a failure is raised where the next tokens are counted, if there are any."""
        try:
            await self.flush()
        except MeteringUnavailable as failure:
            self._failure = failure

    async def flush(self) -> None:
        """Record what is pending. Raises ``MeteringUnavailable`` when the database stays away."""
        async with self._flushing:
            pause = _FIRST_PAUSE_SECONDS
            for attempt in range(1, _ATTEMPTS + 1):
                if not self._pending:
                    return
                try:
                    # Whoever waits may be cancelled: what is on its way to the database is recorded all the same.
                    await asyncio.shield(self._record())
                    self._failure = None
                    return
                except DatabaseError as error:
                    logger.warning("usage not recorded, attempt %d of %d: %s", attempt, _ATTEMPTS, error)
                    if attempt < _ATTEMPTS:
                        await asyncio.sleep(pause)
                        pause *= 2
        logger.error(
            "usage lost unless recorded by hand: %d tokens",
            self._pending,
            extra={
                "event": "usage_not_recorded",
                "session_id": self.session_id,
                "request_id": str(self.request_id),
            },
        )
        raise MeteringUnavailable(
            f"{self._pending} tokens of request {self.request_id} could not be recorded: the database is away."
        )

    async def _record(self) -> None:
        count = self._recording = self._pending
        self._pending = 0
        try:
            recorded = await _recorder().record(
                Usage(session_id=self.session_id, request_id=self.request_id, count=count, path=self.path)
            )
        except BaseException:
            self._pending += count
            raise
        finally:
            self._recording = 0
        self.tokens_left = recorded.tokens_left


async def metered(stream: AsyncIterator[TokenChunk], first: TokenChunk, *, meter: Meter) -> AsyncIterator[TokenChunk]:
    """``first`` and the rest of ``stream``, counted."""
    await meter.count(first.count)
    yield first
    async for chunk in stream:
        await meter.count(chunk.count)
        yield chunk
