"""From an admitted prompt to the last frame of its answer, on one connection.

Guarantees that tokens go straight from the completion to the socket, several in one frame where several
wait; that an answer in the clear has ended before its client gives up on it; and that an answer that
nobody reads to its end is cancelled, and billed for what was generated.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from jobs import answers
from jobs.answers import Answer, PlainAnswer
from jobs.completions import Completion, CompletionRequest
from jobs.connection import Connection, StoppedEarly, Waiting
from jobs.conversations import Conversation
from jobs.kept_keys import GivenAnswer
from jobs.protocol import RequestError
from jobs.sockets import Sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the client was given. ``end`` is ``None`` where the generation failed."""

    text: str
    tokens: int
    finish_reason: str
    end: dict[str, Any] | None


class Answering:
    """Answers the prompts of one connection."""

    def __init__(self, connection: Connection, *, sockets: Sockets) -> None:
        self._connection = connection
        self._sockets = sockets

    async def answer(
        self,
        waiting: Waiting,
        request: CompletionRequest,
        answer: Answer,
        *,
        named: str,
        conversation: Conversation | None = None,
    ) -> Told:
        """Generate and send. ``named`` is how the client calls the session. Raises ``RequestError``."""
        deadline = self._deadline(waiting) if isinstance(answer, PlainAnswer) else None
        try:
            completion = await self._start(waiting, request, conversation)
            return await self._stream(waiting, completion, answer, named=named)
        except StoppedEarly:
            if waiting.stopped == "late":
                raise self._too_late() from None
            end = answers.cancelled_before_it_began()
            for frame in answer.last("cancelled", end):
                await self._connection.send(frame)
            return Told(text="", tokens=0, finish_reason="cancelled", end=end)
        finally:
            if deadline is not None:
                deadline.cancel()

    def finish(self, told: Told, *, conversation: Conversation | None = None, prompt: str = "") -> None:
        """Remember what was said."""
        if conversation is not None and told.end is not None and told.tokens:
            conversation.add(prompt=prompt, answer=told.text)

    async def repeat(self, given: GivenAnswer, answer: Answer) -> None:
        """The same answer once more, without generating or billing it again."""
        await self._connection.send(answer.chunk(given.text, given.tokens))
        await asyncio.sleep(answer.pause)
        for frame in answer.last(given.finish_reason, {**given.end, "repeated": True}):
            await self._connection.send(frame)

    def _deadline(self, waiting: Waiting) -> asyncio.TimerHandle | None:
        seconds = self._connection.limits.plaintext_seconds
        if not seconds:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_at(waiting.arrived + seconds, waiting.stop, "late")

    def _too_late(self) -> RequestError:
        seconds = self._connection.limits.plaintext_seconds
        return RequestError(
            code="timeout",
            message=f"The host could not begin to answer within {seconds} s. Try again, or use an encrypted session, "
            "whose clients wait longer.",
            status=504,
            retry_after=5,
        )

    async def _start(
        self, waiting: Waiting, request: CompletionRequest, conversation: Conversation | None
    ) -> Completion:
        """Start; a conversation that has outgrown the context goes on without its earlier turns."""
        serving = self._sockets.serving
        try:
            return await waiting.start(serving, request)
        except RequestError as refusal:
            outgrown = refusal.code == "TOKEN_LIMIT_EXCEEDED" and len(request.messages) > 1
            if not outgrown or conversation is None or not conversation.turns:
                raise
            conversation.clear()
            return await waiting.start(serving, request.without_history())

    async def _stream(self, waiting: Waiting, completion: Completion, answer: Answer, *, named: str) -> Told:
        parts: list[str] = []
        try:
            if completion.billing.claimable:
                await self._sockets.bind(self._connection, completion.session_id, named=named)
            async with aclosing(completion.events(merged=True)) as events:
                async for event in events:
                    if event.finish_reason is None:
                        parts.append(event.text)
                        await self._connection.send(answer.chunk(event.text, event.tokens))
                    elif event.error is not None:
                        await self._connection.refuse(
                            event.error, waiting.message, tokens_used=completion.completion_tokens
                        )
                        return _told(parts, completion, "error", None)
                    else:
                        late = waiting.stopped == "late" and event.finish_reason == "cancelled"
                        return await self._end(completion, answer, "length" if late else event.finish_reason, parts)
        except BaseException:
            # The socket is gone or the host failed; the reading of events may not even have begun.
            await asyncio.shield(completion.cancel())
            raise
        raise AssertionError("a completion ended without its last event")

    async def _end(self, completion: Completion, answer: Answer, finish_reason: str, parts: list[str]) -> Told:
        end = answers.stream_end(completion, finish_reason)
        if answer.pause and finish_reason != "cancelled":
            await asyncio.sleep(answer.pause)
        for frame in answer.last(finish_reason, end):
            await self._connection.send(frame)
        return _told(parts, completion, finish_reason, end)


def _told(parts: list[str], completion: Completion, finish_reason: str, end: dict[str, Any] | None) -> Told:
    return Told(text="".join(parts), tokens=completion.completion_tokens, finish_reason=finish_reason, end=end)
