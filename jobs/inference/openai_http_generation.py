"""One answer of an inference server, from its request to its last chunk.

Guarantees: every token that the server told is in a chunk before the stream ends, however it ends; what
was never told is counted by the server's own tokenizer or not at all, and the log says so; a stop drops
the connection at once, which is what makes the server stop. Logs numbers, never text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace

from jobs.inference.engine import (
    EngineBusy,
    EngineError,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    TextToTokenize,
    TokenChunk,
    TokenProbability,
)
from jobs.inference.openai_http_dialects import (
    Counting,
    Dialect,
    Kind,
    LlamaCppEvents,
    OpenAIEvents,
    Piece,
    llama_cpp_body,
    openai_body,
)
from jobs.inference.openai_http_events import BadEvent, EventDecoder, WholeCharacters
from jobs.inference.openai_http_questions import Questions
from jobs.inference.openai_http_refusals import context_error, error_of, exceeds_context, sizes_told
from jobs.inference.openai_http_tally import Tally
from jobs.inference.openai_http_wire import Answer, BrokenOff, Json, Refusal, Wire

logger = logging.getLogger(__name__)

# What follows the last token is a line or two; a server that keeps them back is not waited for.
_EPILOGUE_SECONDS = 5.0


class Generation:
    """One request. ``stop`` may be called from any thread."""

    def __init__(self, request: GenerationRequest, *, model: str, wire: Wire, questions: Questions) -> None:
        self.request = request
        self._wire = wire
        self._questions = questions
        self._server = questions.server
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._opening: asyncio.Task[Answer] | None = None
        self._stopped = False
        patience = request.patience_seconds
        self._patience_ends = None if patience is None else self._loop.time() + patience
        self._tally = Tally(limit=request.max_tokens)
        self._characters = WholeCharacters()
        self._received: list[str] = []
        self._prompt_tokens = 0
        self._sequence = 0
        self.started = False

    def stop(self) -> None:
        """End the answer: its stream gets a last chunk with "cancelled" and what was told until then."""
        self._loop.call_soon_threadsafe(self._stop)

    def close(self) -> None:
        """Drop the connection."""
        if self._opening is not None and not self._opening.cancel():
            # It has opened, though perhaps nobody has taken the answer from it yet.
            _when_open(self._opening, Answer.close)

    def _stop(self) -> None:
        self._stopped = True
        if self._opening is not None and not self._opening.cancel():
            _when_open(self._opening, Answer.stop)

    async def chunks(self) -> AsyncGenerator[TokenChunk, None]:
        """The stream. Raises an ``EngineError``."""
        dialect: Dialect = LlamaCppEvents() if self._server.kind is Kind.LLAMA_CPP else OpenAIEvents()
        finish: FinishReason | None = None
        failure: EngineError | None = None
        try:
            answer = await self._open()
            decoder = EventDecoder()
            ended = False
            while not ended:
                data = await self._read(answer, finish=finish)
                pieces, fault = _pieces(dialect, decoder, data)
                finish = next((piece.finish for piece in pieces if piece.finish), finish)
                ended = not data or decoder.done or any(piece.closing for piece in pieces)
                chunk = self._chunk(pieces)
                if chunk is not None:
                    yield chunk
                if fault is not None:
                    raise fault
            if finish is None:
                raise BrokenOff("it ends before its last event")
        except (BrokenOff, BadEvent) as broken:
            # After its last token, nothing that the client waits for can be missing.
            if finish is None:
                failure = GenerationFailed(f"The inference server's answer broke off: {broken}.")
        except asyncio.CancelledError:
            if not self._stopped or _is_cancelled():
                raise
        except EngineError as error:
            failure = error
        finally:
            self.close()
        async for chunk in self._end(dialect, finish=finish, failure=failure):
            yield chunk

    async def _end(
        self, dialect: Dialect, *, finish: FinishReason | None, failure: EngineError | None
    ) -> AsyncGenerator[TokenChunk, None]:
        """What is still to be counted, and the last chunk or the failure."""
        for piece in dialect.flush():
            self._tally.add(piece)
        await self._count_untold()
        if self._stopped:
            finish, failure = finish or "cancelled", None
        if failure is None:
            ids, untold = self._tally.take()
            yield self._made(ids, self._characters.flush(), (), untold=untold, finish=finish or "stop")
            return
        ids, untold = self._tally.take()
        if ids or untold:
            yield self._made(ids, "", (), untold=untold)
        raise failure

    async def _open(self) -> Answer:
        """Send the request. Raises what ``Engine.generate`` may raise before the first chunk."""
        self._opening = asyncio.ensure_future(self._admitted())
        if self._stopped:
            self._opening.cancel()
        try:
            async with asyncio.timeout_at(self._patience_ends):
                return await self._opening
        except TimeoutError:
            raise EngineBusy("The inference server did not take the request in time.") from None
        except Refusal as refusal:
            raise error_of(refusal, model=self.request.model) from refusal

    async def _admitted(self) -> Answer:
        path, body = await self._request()
        try:
            return await self._wire.open(path, body)
        except Refusal as refusal:
            if not exceeds_context(refusal):
                raise
            room = await self._room(refusal)
        # The prompt fits; only the room that was asked for does not.
        return await self._wire.open(path, {**body, "max_tokens": room})

    async def _room(self, refusal: Refusal) -> int:
        """Completion tokens that fit behind the prompt. Raises ``ContextLengthExceeded`` where none does."""
        prompt, context = sizes_told(refusal)
        context = context or self._server.models[self._model].context_length
        if self._server.can_tokenize and self._server.kind is not Kind.LLAMA_CPP:
            request = self.request
            prompt = (
                len(await self._questions.tokenize(self._model, request.messages, request.prompt))
                if request.prompt_ids is None
                else len(request.prompt_ids)
            )
        if prompt is None or prompt >= context or self._server.kind is Kind.LLAMA_CPP:
            raise context_error(prompt_tokens=prompt, context_length=context)
        return min(self.request.max_tokens, context - prompt)

    async def _request(self) -> tuple[str, Json]:
        request, server = self.request, self._server
        if server.kind is not Kind.LLAMA_CPP:
            return openai_body(
                request, model=self._model, kind=server.kind, counting=server.counting, max_tokens=request.max_tokens
            )
        prompt: str | list[int]
        if request.prompt_ids is not None:
            prompt = list(request.prompt_ids)
        else:
            text = TextToTokenize(model=request.model, messages=request.messages, prompt=request.prompt)
            prompt = await self._questions.rendered(self._model, text)
        context_length = server.models[self._model].context_length
        body = llama_cpp_body(request, model=self._model, prompt=prompt, context_length=context_length)
        return "/completion", body

    async def _read(self, answer: Answer, *, finish: FinishReason | None) -> bytes:
        until = None if self.started else self._patience_ends
        if finish:
            until = self._loop.time() + _EPILOGUE_SECONDS
        try:
            async with asyncio.timeout_at(until):
                return await answer.read()
        except TimeoutError:
            if finish:
                raise BrokenOff("its end is missing") from None
            raise EngineBusy("The inference server gave no token in time.") from None

    def _add(self, piece: Piece) -> str:
        self._tally.add(piece)
        if piece.prompt_tokens is not None:
            self._prompt_tokens = piece.prompt_tokens
        if piece.text:
            self._received.append(piece.text)
        return self._characters.push(piece.text)

    def _chunk(self, pieces: Iterable[Piece]) -> TokenChunk | None:
        """One chunk for all that arrived together, if it brings anything."""
        text = ""
        probabilities: list[TokenProbability] = []
        for piece in pieces:
            text += self._add(piece)
            kept = len(piece.probabilities) - piece.end_token
            probabilities += piece.probabilities[: max(kept, 0)]
        ids, untold = self._tally.take()
        if not (ids or untold or text):
            return None
        return self._made(ids, text, tuple(probabilities), untold=untold)

    def _made(
        self,
        ids: tuple[int, ...],
        text: str,
        probabilities: tuple[TokenProbability, ...],
        *,
        untold: int = 0,
        finish: FinishReason | None = None,
    ) -> TokenChunk:
        self.started = True
        self._sequence += 1
        most = self.request.top_logprobs
        return TokenChunk(
            sequence=self._sequence - 1,
            token_ids=ids,
            untold=untold,
            text=text,
            prompt_tokens=self._prompt_tokens,
            finish_reason=finish,
            probabilities=()
            if most is None
            else tuple(replace(entry, top=entry.top[:most]) for entry in probabilities),
        )

    async def _count_untold(self) -> None:
        """Where text arrived and no total did, ask the server's tokenizer; else count nothing more."""
        if self._server.counting is not Counting.FINAL or self._tally.told or not self._received:
            return
        text = "".join(self._received)
        try:
            if self._server.can_tokenize:
                self._tally.add_tokenized(await self._questions.count_plain(self._model, text))
                return
        except EngineError as error:
            logger.warning("the inference server's tokenizer failed: %s", error)
        logger.warning(
            "an answer of %d characters broke off and its tokens were never told: they are not billed",
            len(text),
            extra={"event": "tokens_untold", "request_id": self.request.request_id},
        )


def _pieces(
    dialect: Dialect, decoder: EventDecoder, data: bytes
) -> tuple[tuple[Piece, ...], BadEvent | EngineError | None]:
    """The pieces of ``data``, and the fault that follows them if there is one."""
    pieces: list[Piece] = []
    try:
        for event in decoder.feed(data):
            pieces.extend(dialect.pieces(event))
        if not data:
            decoder.end()
    except (BadEvent, EngineError) as fault:
        return tuple(pieces), fault
    return tuple(pieces), None


def _when_open(opening: asyncio.Task[Answer], act: Callable[[Answer], None]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        act(opening.result())


def _is_cancelled() -> bool:
    """Whether the task itself, and not only the opening of the connection, was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
