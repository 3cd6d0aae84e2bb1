"""One WebSocket: the order in which its messages are answered, what may overtake it, and its limits.

Guarantees that messages are answered one after another, in the order in which they came; that a cancel is
seen at once and that its stream has ended before the next message is answered; that a connection which
ends stops its generation, which is billed for what was generated; and that it holds a bounded amount of
what its client sent and did not read. What the messages mean is ``dialects``' business.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs import answers
from jobs.callers import ANYBODY, Caller
from jobs.completions import Completion, CompletionRequest, Serving
from jobs.protocol import RequestError, invalid
from jobs.refusals import INTERNAL
from jobs.serializers import parse_json_object
from jobs.socket_limits import Allowance, SocketLimits

logger = logging.getLogger(__name__)

GENERATING = ("inference", "prompt", "encrypted_message")
POLICY_VIOLATION, MESSAGE_TOO_BIG, TRY_AGAIN_LATER = 1008, 1009, 1013

Handler = Callable[["Waiting"], Coroutine[Any, Any, None]]


class StoppedEarly(Exception):
    """A generation was stopped before its first token."""


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A message that is to be answered, or is being answered. ``arrived`` by the event loop's clock."""

    message: Mapping[str, Any]
    arrived: float
    stopped: Literal["", "cancelled", "late"] = ""
    completion: Completion | None = None
    _starting: asyncio.Task[Completion] | None = None
    _stopping: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def generates(self) -> bool:
        return self.message.get("type") in GENERATING

    def is_stopped(self) -> bool:
        """Asked for again after every wait: it changes meanwhile."""
        return self.stopped != ""

    async def start(self, serving: Serving, request: CompletionRequest) -> Completion:
        """Start the generation. Raises ``StoppedEarly`` if it is stopped before it has a first token."""
        if self.is_stopped():
            raise StoppedEarly
        starting = self._starting = asyncio.ensure_future(serving.start(request))
        try:
            self.completion = await starting
        except asyncio.CancelledError:
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                # Its first token and the end of the socket came together: nobody else knows of it.
                await asyncio.shield(starting.result().cancel())
            task = asyncio.current_task()
            if not self.is_stopped() or (task is not None and task.cancelling()):
                raise
            raise StoppedEarly from None
        if self.is_stopped():
            await asyncio.shield(self.completion.cancel())
        return self.completion

    def stop(self, why: Literal["cancelled", "late"]) -> None:
        """Stop the generation, wherever it is. Its tokens so far are billed."""
        if self.is_stopped():
            return
        self.stopped = why
        if self.completion is not None:
            task = asyncio.ensure_future(self.completion.cancel())
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        elif self._starting is not None:
            self._starting.cancel()


class Connection:
    """A WebSocket as ``dialects`` sees it. ``caller`` is what its client has proven."""

    def __init__(
        self,
        *,
        limits: SocketLimits,
        send: Callable[[str], Awaitable[None]],
        close: Callable[[int], Awaitable[None]],
    ) -> None:
        self.id = uuid.uuid4()
        self.caller: Caller = ANYBODY
        self.limits = limits
        self.handlers: Mapping[str, Handler] = {}
        self.heard_at = self._now()
        self._send = send
        self._close = close
        self._closing = False
        self._senders = 0
        self._sending_since = 0.0
        self._allowance = Allowance(limits.messages_per_second)
        self._waiting: deque[Waiting] = deque()
        self._current: Waiting | None = None
        self._worker: asyncio.Task[None] | None = None
        self._soon: set[asyncio.Task[None]] = set()

    # What arrives ---------------------------------------------------------------------------------

    async def receive(self, raw: str | bytes) -> None:
        """Answer at once what must not wait behind a generation; queue the rest in order."""
        self.heard_at = self._now()
        if self._closing:
            return
        if not self._allowance.take():
            await self._refuse_excess()
            return
        if len(raw) > self.limits.max_message_bytes:
            limit = f"A message may hold {self.limits.max_message_bytes} bytes. Send a shorter prompt."
            await self.refuse(RequestError(code="payload_too_large", message=limit, status=413), {})
            await self._hang_up(MESSAGE_TOO_BIG)
            return
        try:
            message = answers.with_short_id(parse_json_object(raw))
        except RequestError as refusal:
            await self.refuse(refusal, {})
            return
        await self._dispatch(message)

    async def _dispatch(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "stream_cancel":
            # Silent if there is nothing to stop: an error would be taken for the next message's.
            if (target := self._to_be_stopped()) is not None:
                target.stop("cancelled")
        elif kind == "ping":
            await self.send('{"type": "pong"}')
        elif self._handler(message) is not None or self._to_be_stopped() is not None:
            # What nobody knows waits, too: the client would take its refusal for the end of the running answer.
            await self._queue(message)
        else:
            await self.refuse(self._unknown(message), message)

    def _handler(self, message: Mapping[str, Any]) -> Handler | None:
        kind = message.get("type")
        return self.handlers.get(kind) if isinstance(kind, str) else None

    def _unknown(self, message: Mapping[str, Any]) -> RequestError:
        known = ", ".join(("stream_cancel", "ping", *self.handlers))
        return invalid(f"Unknown message type {message.get('type')!r:.80}. Known: {known}.", field="type")

    def _to_be_stopped(self) -> Waiting | None:
        """What a cancel means: the generation that runs, or else the first that waits."""
        candidates = (self._current, *self._waiting)
        return next((each for each in candidates if each is not None and each.generates), None)

    async def _queue(self, message: dict[str, Any]) -> None:
        if len(self._waiting) >= self.limits.queued_messages:
            busy = f"This socket already has {self.limits.queued_messages} messages waiting. Wait for their answers."
            await self.refuse(RequestError(code="rate_limit_exceeded", message=busy, status=429), message)
            return
        self._waiting.append(Waiting(message=message, arrived=self._now()))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._answer_in_order())

    async def _refuse_excess(self) -> None:
        if self._allowance.overdrawn:
            await self._hang_up(POLICY_VIOLATION)
            return
        limit = f"This socket may send {self.limits.messages_per_second} messages a second. Send fewer."
        await self.refuse(RequestError(code="rate_limit_exceeded", message=limit, status=429, retry_after=1), {})

    # What is answered -----------------------------------------------------------------------------

    async def _answer_in_order(self) -> None:
        # Ends with the queue: a socket that waits for its user needs no task.
        while self._waiting:
            waiting = self._current = self._waiting.popleft()
            try:
                handler = self._handler(waiting.message)
                if handler is None:
                    raise self._unknown(waiting.message)
                await handler(waiting)
            except RequestError as refusal:
                await self.refuse(refusal, waiting.message)
            except Exception:  # the named boundary of a socket: one bad message must not end the others
                logger.exception("a WebSocket message could not be answered")
                await self.refuse(INTERNAL, waiting.message)
            finally:
                self._current = None

    async def refuse(self, refusal: RequestError, message: Mapping[str, Any], *, tokens_used: int = 0) -> None:
        """An ``error`` frame and the end that follows it."""
        for frame in answers.refusal(refusal, message, tokens_used=tokens_used):
            await self.send(frame)

    async def send(self, frame: str) -> None:
        """Hand a frame to the web server; waits while its reader is slow."""
        if self._senders == 0:
            self._sending_since = self._now()
        self._senders += 1
        try:
            await self._send(frame)
        finally:
            self._senders -= 1

    def send_soon(self, frame: str) -> None:
        """Send what answers nobody, unless the reader is slow: then it is left out."""
        if self._senders == 0:
            task = asyncio.ensure_future(self.send(frame))
            self._soon.add(task)
            task.add_done_callback(self._soon.discard)

    # How it ends ----------------------------------------------------------------------------------

    def overdue(self) -> int:
        """The code to close it with: its reader is too slow, or it has been idle for too long; else 0."""
        now = self._now()
        if self._senders and now - self._sending_since > self.limits.slow_reader_seconds:
            return TRY_AGAIN_LATER
        if self._current is None and now - self.heard_at > self.limits.idle_seconds:
            return POLICY_VIOLATION
        return 0

    async def drop(self, code: int) -> None:
        """Close the socket from this side and stop what it generates."""
        if self._worker is not None:
            self._worker.cancel()
        await self._hang_up(code)

    async def _hang_up(self, code: int) -> None:
        if not self._closing:
            self._closing = True
            await self._close(code)

    async def ended(self) -> None:
        """The socket is gone. Returns when nothing of it runs any more."""
        self._waiting.clear()
        tasks = [task for task in (self._worker, *self._soon) if task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
