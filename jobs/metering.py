"""Metering: the only writer of token usage.

Guarantees that every token id the engine produced for a request is recorded once, with the same
rule on every path; that usage tiles the session without gaps; and that no more is recorded as
billable than the deposit pays for. Recording outlives replies, sockets and restarts: at most one
window of ``WINDOW_TOKENS`` tokens or ``WINDOW_SECONDS`` seconds is in memory at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from django.db import DatabaseError, transaction
from django.db.models import F
from django.utils import timezone

from jobs.inference.engine import TokenChunk
from jobs.models import DeliveryPath, InferenceRequest, Session, TokenUsage
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

WINDOW_TOKENS = 16
WINDOW_SECONDS = 0.25

_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.2


class MeteringUnavailable(Exception):
    """Usage could not be recorded. Generation must stop; the unrecorded count is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a count: ``billable`` + ``unpaid`` token ids, and what the deposit has left."""

    billable: int
    unpaid: int
    tokens_left: int | None


def record_usage(*, session_id: int, request_id: UUID, count: int, path: DeliveryPath) -> Recorded:
    """Append ``count`` completion token ids to the session's ledger."""
    with transaction.atomic():
        session = Session.objects.select_for_update().get(pk=session_id)
        left = session.tokens_left
        billable = count if left is None else min(count, left)
        if billable:
            TokenUsage.objects.create(
                session_id=session_id,
                request_id=request_id,
                first_index=session.tokens_tracked,
                count=billable,
                path=path,
            )
            Session.objects.filter(pk=session_id).update(
                tokens_tracked=F("tokens_tracked") + billable, last_activity_at=timezone.now()
            )
        InferenceRequest.objects.filter(pk=request_id).update(
            completion_tokens=F("completion_tokens") + count,
            unpaid_tokens=F("unpaid_tokens") + (count - billable),
        )
    return Recorded(billable=billable, unpaid=count - billable, tokens_left=None if left is None else left - billable)


@dataclass(slots=True, kw_only=True)
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
    _pending_since: float = field(default=0.0)

    async def count(self, tokens: int) -> None:
        """Count ``tokens`` more token ids; records them if the window is full."""
        if tokens and not self._pending:
            self._pending_since = time.monotonic()
        self._pending += tokens
        self.counted += tokens
        if self._pending >= WINDOW_TOKENS:
            await self.flush()

    def due_in(self) -> float | None:
        """Seconds until the open window must be recorded; ``None`` if nothing is pending."""
        if not self._pending:
            return None
        return max(0.0, self._pending_since + WINDOW_SECONDS - time.monotonic())

    async def flush(self) -> None:
        """Record what is pending. Raises ``MeteringUnavailable`` when the database stays away."""
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            if not self._pending:
                return
            try:
                recorded = await in_database_thread(record_usage)(
                    session_id=self.session_id,
                    request_id=self.request_id,
                    count=self._pending,
                    path=self.path,
                )
            except DatabaseError as error:
                logger.warning("usage not recorded, attempt %d of %d: %s", attempt, _ATTEMPTS, error)
                if attempt < _ATTEMPTS:
                    await asyncio.sleep(pause)
                    pause *= 2
            else:
                self._pending = 0
                self.tokens_left = recorded.tokens_left
                return
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


async def metered(stream: AsyncIterator[TokenChunk], first: TokenChunk, *, meter: Meter) -> AsyncIterator[TokenChunk]:
    """``first`` and the rest of ``stream``, counted; records windows that fall due while waiting."""
    await meter.count(len(first.token_ids))
    yield first
    following: asyncio.Task[TokenChunk | None] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(_next(stream))
            done, _ = await asyncio.wait({following}, timeout=meter.due_in())
            if not done:
                await meter.flush()
                continue
            chunk = following.result()
            following = None
            if chunk is None:
                return
            await meter.count(len(chunk.token_ids))
            yield chunk
    finally:
        if following is not None:
            following.cancel()


async def _next(stream: AsyncIterator[TokenChunk]) -> TokenChunk | None:
    return await anext(stream, None)
