"""A completion on its way: its events, its meter, and the closing of its books.

Guarantees that usage is recorded before the last event is delivered, whether or not anybody reads, and
that whoever stops reading stops the generation. Admits nothing; ``completions`` does.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from django.db import DatabaseError

from jobs import requests
from jobs.inference.engine import (
    Engine,
    EngineError,
    TokenChunk,
    TokenProbability,
)
from jobs.metering import Meter, MeteringUnavailable, metered
from jobs.models import RequestState
from jobs.observation import UNWATCHED, Watch
from jobs.protocol import BillingNote, RequestError
from jobs.rate_limits import UNLIMITED, Standing
from jobs.refusals import INTERNAL, metering_unavailable, refusal_of
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "cancelled", "budget", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvent:
    """A piece of the answer. ``tokens`` completion token ids became ``text``.

    The last event, and only it, has a ``finish_reason``; ``error`` says why when that is "error".
    ``probabilities`` has one entry per token if they were asked for.
    """

    text: str = ""
    tokens: int = 0
    probabilities: tuple[TokenProbability, ...] = ()
    finish_reason: FinishReason | None = None
    error: RequestError | None = None


@dataclass(slots=True, kw_only=True)
class Completion:
    """A running generation. Read ``events``; call ``cancel`` to stop it early.

    ``standing`` is how its caller stands with the rate limits, for an answer's headers.
    The generation runs in a task of its own: it is metered to its end whether or not anybody reads.
    The queue of events is bounded by the request's ``max_tokens``.
    """

    id: uuid.UUID
    session_id: int
    model: str
    prompt_tokens: int
    context_length: int
    billing: BillingNote
    meter: Meter
    standing: Standing = UNLIMITED
    watch: Watch = UNWATCHED
    _engine: Engine
    _queue: asyncio.Queue[CompletionEvent] = field(default_factory=asyncio.Queue)
    _cancelled: bool = False
    _ended: bool = False
    _stopping: asyncio.Task[None] | None = None

    @property
    def completion_tokens(self) -> int:
        """Token ids counted so far."""
        return self.meter.counted

    async def events(self, *, merged: bool = False) -> AsyncGenerator[CompletionEvent, None]:
        """The answer, piece by piece. Leaving early cancels the generation.

        ``merged``: pieces that wait already come as one, so that a reader which was slow catches up.
        """
        ended = False
        try:
            while not ended:
                waiting = [await self._queue.get()]
                while merged and not self._queue.empty():
                    waiting.append(self._queue.get_nowait())
                for event in _merged(waiting) if len(waiting) > 1 else waiting:
                    ended = event.finish_reason is not None
                    yield event
        finally:
            if not ended:
                await asyncio.shield(self.cancel())

    def stop_with(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel the generation, unless it has ended, once ``task`` is over: the one that answers a client.

        For an answer that is handed on before anybody reads ``events``: where the client goes away in
        between, there is no reader that could leave.
        """
        if task is not None:
            task.add_done_callback(self._stop)

    def _stop(self, task: asyncio.Task[Any]) -> None:
        if not self._ended:
            self._stopping = asyncio.ensure_future(self.cancel())

    async def cancel(self) -> None:
        """Ask the engine to stop. The last event follows with ``finish_reason`` "cancelled"."""
        self._cancelled = True
        await self._engine.cancel(str(self.id))

    async def run(self, stream: AsyncIterator[TokenChunk], first: TokenChunk, *, budget_bound: bool) -> None:
        """Meter ``first`` and the rest of ``stream`` to the end, then close the books of the request."""
        finish: FinishReason = "error"
        error: RequestError | None = None
        try:
            async for chunk in metered(stream, first, meter=self.meter):
                self.watch.chunk(chunk)
                if chunk.finish_reason is not None:
                    finish = chunk.finish_reason
                # An engine elsewhere may tell it with its last chunk only.
                self.prompt_tokens = chunk.prompt_tokens or self.prompt_tokens
                # The last text is held back until its tokens are recorded.
                if chunk.finish_reason is None:
                    self._queue.put_nowait(_event_of(chunk))
                    if self.meter.tokens_left == 0:
                        await self._engine.cancel(str(self.id))
                else:
                    await self.meter.flush()
                    if chunk.text or chunk.count:
                        self._queue.put_nowait(_event_of(chunk))
            finish = self._billed_finish(finish, budget_bound=budget_bound)
        except MeteringUnavailable as failure:
            error = metering_unavailable(failure)
            await self._engine.cancel(str(self.id))
        except EngineError as failure:
            error = refusal_of(failure)
        finally:
            await self._close_books(finish if error is None else "error", error)

    def _billed_finish(self, finish: FinishReason, *, budget_bound: bool) -> FinishReason:
        """Say "budget" where it was the deposit that ended the generation."""
        if self.meter.tokens_left != 0 or self._cancelled:
            return finish
        return "budget" if finish == "cancelled" or (finish == "length" and budget_bound) else finish

    async def _close_books(self, finish: FinishReason, error: RequestError | None) -> None:
        try:
            await self.meter.flush()
        except MeteringUnavailable as failure:
            error = error or metering_unavailable(failure)
        if finish == "error" or error is not None:
            finish, error = "error", error or INTERNAL
        states = {"error": RequestState.FAILED, "cancelled": RequestState.CANCELLED}
        try:
            await in_database_thread(requests.finish)(
                self.id,
                state=states.get(finish, RequestState.FINISHED),
                finish_reason=finish,
                error="" if error is None else error.message,
                prompt_tokens=self.prompt_tokens,
            )
        except DatabaseError:
            # Its tokens are recorded; the row itself is closed by ``fail_abandoned_requests``.
            logger.exception("request %s could not be marked as ended", self.id)
        self._ended = True
        self.watch.ended(
            finish,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            error_code="" if error is None else error.code,
        )
        self._queue.put_nowait(CompletionEvent(finish_reason=finish, error=error))


def _merged(waiting: list[CompletionEvent]) -> Iterator[CompletionEvent]:
    """The pieces among ``waiting`` as one, and the last event if it is there."""
    pieces = [event for event in waiting if event.finish_reason is None]
    if pieces:
        yield CompletionEvent(
            text="".join(event.text for event in pieces),
            tokens=sum(event.tokens for event in pieces),
            probabilities=tuple(each for event in pieces for each in event.probabilities),
        )
    yield from (event for event in waiting if event.finish_reason is not None)


def _event_of(chunk: TokenChunk) -> CompletionEvent:
    return CompletionEvent(text=chunk.text, tokens=chunk.count, probabilities=chunk.probabilities)
