"""The completions of one request as one answer: ``n`` choices that are generated side by side.

Guarantees that every choice is admitted and metered like any other completion; that a choice that
fails ends the others, while one for which they left no deposit is merely empty; and that all are
cancelled, waiting or running, once the client is gone. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from jobs.completions import Completion, CompletionEvent, CompletionRequest, Serving
from jobs.http_callers import with_session_token
from jobs.protocol import BillingNote, RequestError
from jobs.rate_limits import Standing
from jobs.refusals import INTERNAL
from jobs.spending import handing_out

logger = logging.getLogger(__name__)

_DEPOSIT_EXHAUSTED = "deposit_exhausted"
# A choice that is about to begin is let begin, so that its first token is told and not only billed.
_BEGINNING_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """An event of the choice number ``index``."""

    index: int
    event: CompletionEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Of an answer: milliseconds to its first token, the wait in the queue included, and from there to its end."""

    prompt_ms: float
    predicted_ms: float


class Choices:
    """One answer of ``len(requests)`` choices. ``begin`` it, then read ``pieces``.

    ``completions`` holds what was admitted so far, by index. The first ``choices_per_prompt`` share one
    prompt, and so on.
    """

    def __init__(
        self,
        serving: Serving,
        requests: Sequence[CompletionRequest],
        *,
        choices_per_prompt: int = 1,
        billing: BillingNote | None = None,
        standing: Standing | None = None,
    ) -> None:
        self._per_prompt = choices_per_prompt
        self._billing = billing
        self._begun = time.monotonic()
        self._first: float | None = None
        self._ended: float | None = None
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._ahead: Piece | None = None
        self.completions: dict[int, Completion] = {}
        self._tasks = [
            asyncio.create_task(self._play(serving, index, request, standing=None if index else standing))
            for index, request in enumerate(requests)
        ]
        self._unended = set(range(len(requests)))
        self._doomed = False
        for index, task in enumerate(self._tasks):
            task.add_done_callback(lambda ended, index=index: self._report(index, ended))  # type: ignore[misc]
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    async def of(
        cls, serving: Serving, requests: Sequence[CompletionRequest], *, choices_per_prompt: int = 1
    ) -> Choices:
        """The choices of ``requests``, which are of one caller and one job, on their way.

        Raises ``RequestError`` where the first of several is not admitted, or is the first ever to use the job
        and may not.
        """
        if len(requests) == 1:
            return cls(serving, requests)
        standing = await serving.admit(requests[0])
        # Whoever uses a job first is given a token for it. The others would be strangers without it.
        opened = await serving.open_session(requests[0].reference, caller=requests[0].caller)
        caller = requests[0].caller
        if opened.billing.session_token:
            try:
                caller = await with_session_token(caller, opened.billing.session_token)
            except RequestError as refusal:
                raise handing_out(refusal, opened.billing) from refusal
        known = [replace(request, caller=caller) for request in requests]
        return cls(serving, known, choices_per_prompt=choices_per_prompt, billing=opened.billing, standing=standing)

    async def begin(self, *, patience: float | None = None) -> None:
        """Wait for the first piece, no longer than ``patience`` seconds. Raises the ``RequestError`` it is."""
        try:
            self._ahead = await self._next(patience)
            if self._ahead is not None and self._ahead.event.error is not None:
                raise self.failed(self._ahead.event.error)
        except BaseException:
            await self.stop()
            raise

    async def pieces(self, *, ping_seconds: float | None = None) -> AsyncGenerator[Piece | None, None]:
        """The events of all choices as they come, to the end of each; ``None`` after ``ping_seconds`` without any.

        After a failure the other choices are cancelled, and end. Leaving early cancels all.
        """
        try:
            while self._unended:
                piece = await self._next(ping_seconds)
                if piece is not None and piece.event.finish_reason is not None:
                    self._unended.discard(piece.index)
                    if piece.event.error is not None:
                        await self._cancel_the_others()
                yield piece
            self._ended = time.monotonic()
        finally:
            if self._unended:
                await asyncio.shield(self.stop())

    async def stop(self) -> None:
        """Cancel every choice that has not ended, and wait until each knows."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_with(self, task: asyncio.Task[Any] | None) -> None:
        """``stop`` once ``task`` is over, the one that answers the client: nobody else may notice its end."""
        if task is not None:
            task.add_done_callback(self._stop_soon)

    def usage(self) -> dict[str, int]:
        """Token counts so far in the field names of the OpenAI API, and the model's context window.

        A prompt counts once however many choices it has.
        """
        admitted = self.completions
        prompts = {index // self._per_prompt: completion.prompt_tokens for index, completion in admitted.items()}
        completion_tokens = sum(completion.completion_tokens for completion in admitted.values())
        return {
            "prompt_tokens": sum(prompts.values()),
            "completion_tokens": completion_tokens,
            "total_tokens": sum(prompts.values()) + completion_tokens,
            "context_window_size": max((completion.context_length for completion in admitted.values()), default=0),
        }

    def billing(self) -> BillingNote | None:
        """Who pays; ``None`` as long as nothing was admitted."""
        first = next(iter(self.completions.values()), None)
        return self._billing or (None if first is None else first.billing)

    def headers(self) -> dict[str, str]:
        """How the caller stands with its rate limits, as far as it is known now."""
        latest = next(reversed(self.completions.values()), None)
        return {} if latest is None else latest.standing.headers()

    def timings(self) -> Timings:
        """As far as it is known now."""
        now = self._ended or time.monotonic()
        first = self._first or now
        return Timings(prompt_ms=(first - self._begun) * 1000, predicted_ms=(now - first) * 1000)

    def failed(self, error: RequestError) -> RequestError:
        """``error`` with the usage of what was generated before it, if anything was, and a new session token."""
        if self.completions:
            error = replace(error, details={**error.details, "usage": self.usage()})
        return handing_out(error, self.billing())

    async def _play(
        self, serving: Serving, index: int, request: CompletionRequest, *, standing: Standing | None
    ) -> None:
        try:
            completion = await serving.start(request, standing=standing)
        except RequestError as refusal:
            # What the others of this very answer used up is paid for, and must be delivered.
            spent = refusal.code == _DEPOSIT_EXHAUSTED and bool(self.completions)
            if spent:
                self._put(index, CompletionEvent(finish_reason="budget"))
            else:
                self._put(index, CompletionEvent(finish_reason="error", error=refusal))
            return
        self._first = self._first or time.monotonic()
        self.completions[index] = completion
        if self._doomed:
            await completion.cancel()
        async with aclosing(completion.events()) as events:
            async for event in events:
                self._put(index, event)

    def _put(self, index: int, event: CompletionEvent) -> None:
        self._queue.put_nowait(Piece(index=index, event=event))

    def _report(self, index: int, task: asyncio.Task[None]) -> None:
        """A choice whose task broke must end all the same."""
        if task.cancelled():
            self._put(index, CompletionEvent(finish_reason="cancelled"))
        elif (failure := task.exception()) is not None:
            logger.error("a completion ended by an unforeseen error", exc_info=failure)
            self._put(index, CompletionEvent(finish_reason="error", error=INTERNAL))

    async def _next(self, patience: float | None) -> Piece | None:
        """The next piece, or ``None`` if it does not come within ``patience`` seconds."""
        if self._ahead is not None:
            piece, self._ahead = self._ahead, None
            return piece
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(patience):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def _cancel_the_others(self) -> None:
        self._doomed = True
        for index in self._unended:
            if index in self.completions:
                await self.completions[index].cancel()
            else:
                asyncio.get_running_loop().call_later(_BEGINNING_SECONDS, self._give_up, index)

    def _give_up(self, index: int) -> None:
        """Stop a choice that still waits."""
        if index not in self.completions:
            self._tasks[index].cancel()

    def _stop_soon(self, task: asyncio.Task[Any]) -> None:
        if any(not own.done() for own in self._tasks):
            self._stopping = asyncio.ensure_future(self.stop())
