"""Engines for tests: replies are given, nothing is computed.

``ScriptedEngine`` is an in-process ``Engine`` with exact chunks, pauses by event and failures half
way. ``ScriptedGenerator`` stands in for a model inside the real engine process, so that tests of
the whole stack run the real scheduler, server and client. Guarantees: the same request always gives
the same tokens. Not meant for serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from jobs.inference.detokenizer import Detokenizer, Utf8Detokenizer
from jobs.inference.engine import (
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineStatus,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelNotLoaded,
    ModelStatus,
    TextToTokenize,
    TokenChunk,
    TokenProbability,
)
from jobs.inference.generator import Batch, Row

_HOLD_POLL_SECONDS = 0.002
DEFAULT_TEXT = "The quick brown fox — jumps over 👩‍👩‍👧 and 日本語. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a ``ScriptedGenerator`` does.

    It says ``text`` again and again, one UTF-8 byte per token, for ``tokens`` tokens or the
    request's limit, whichever comes first; ``tokens`` None means always to the limit. ``batch_rows`` rows run together.
    ``hold_after`` n waits after n tokens until the request is stopped, ``fail_after`` n fails there,
    ``seconds_per_token`` paces. A prompt has one token per UTF-8 byte of its contents.
    """

    text: str = DEFAULT_TEXT
    tokens: int | None = None
    context_length: int = 2048
    replicas: int = 2
    batch_rows: int = 8
    hold_after: int | None = None
    fail_after: int | None = None
    seconds_per_token: float = 0.0

    def id_at(self, position: int) -> int:
        """The token id at ``position``."""
        data = self.text.encode()
        return data[position % len(data)]

    def ids(self, count: int) -> tuple[int, ...]:
        """The first ``count`` token ids."""
        return tuple(map(self.id_at, range(count)))


class ScriptedGenerator:
    """A ``TokenGenerator`` that plays a ``Script``; token ids are byte values."""

    def __init__(self, model: str, *, script: Script) -> None:
        self._script = script
        self._loaded = LoadedModel(
            model=model,
            context_length=script.context_length,
            vocabulary_size=256,
            device="cpu",
            compute_type="scripted",
            replicas=script.replicas,
            batch_rows=script.batch_rows,
        )

    @property
    def loaded(self) -> LoadedModel:
        """See ``TokenGenerator.loaded``."""
        return self._loaded

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """See ``TokenGenerator.encode``."""
        return tuple("".join(message.content for message in messages).encode())

    def encode_text(self, text: str) -> tuple[int, ...]:
        """See ``TokenGenerator.encode_text``."""
        return tuple(text.encode())

    def detokenizer(self) -> Detokenizer:
        """See ``TokenGenerator.detokenizer``."""
        return Utf8Detokenizer(lambda token: bytes((token,)))

    def decode(self, token_ids: Sequence[int]) -> str:
        """See ``TokenGenerator.decode``."""
        return bytes(token_ids).decode(errors="replace")

    def run(self, batch: Batch) -> None:
        """See ``TokenGenerator.run``: one token per row and step; a row that is held misses steps."""
        live = list(batch.rows)
        while live and not batch.interrupted.is_set():
            if self._script.seconds_per_token:
                batch.interrupted.wait(self._script.seconds_per_token)
            held = [row for row in live if self._is_held(row)]
            live = held + [row for row in live if row not in held and not self._advance(row)]
            batch.on_step()
            if len(live) == len(held) > 0:
                batch.interrupted.wait(_HOLD_POLL_SECONDS)

    def _is_held(self, row: Row) -> bool:
        return row.produced == self._script.hold_after and not row.stopped.is_set()

    def _advance(self, row: Row) -> bool:
        """One token; True if the row has left."""
        script, position = self._script, row.produced
        if row.stopped.is_set():
            return True
        if position == script.fail_after:
            raise GenerationFailed(f"The script fails after {position} tokens.")
        if position != script.tokens:
            token = script.id_at(position)
            count = row.request.top_logprobs
            if row.deliver(token, None if count is None else self._probability(token, count=count)):
                return True
        if row.produced == script.tokens:
            row.finish("stop")
            return True
        return False

    @staticmethod
    def _probability(token: int, *, count: int) -> TokenProbability:
        """Its own token at probability 1, then ``count`` - 1 made up ones."""
        top = tuple((chr(97 + rank), -float(rank)) for rank in range(count))
        return TokenProbability(token_id=token, token=chr(token), logprob=0.0, top=top)

    def close(self) -> None:
        """See ``TokenGenerator.close``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedReply:
    """A reply of ``ScriptedEngine``: ``tokens`` are the (ids, text) of its chunks, in order.

    ``pause_before`` n waits for the engine's ``resumed`` event before chunk n. ``error`` is raised
    after the chunks instead of a last chunk with ``finish_reason``.
    """

    tokens: tuple[tuple[tuple[int, ...], str], ...]
    prompt_tokens: int = 7
    finish_reason: FinishReason = "stop"
    pause_before: int | None = None
    error: EngineError | None = None


def reply_of(text: str, *, tokens: int | None = None, prompt_tokens: int = 7) -> ScriptedReply:
    """A reply of one chunk per UTF-8 byte of ``text``, or of exactly ``tokens`` bytes of it repeated."""
    script = Script(text=text)
    ids = script.ids(len(text.encode()) if tokens is None else tokens)
    detokenizer = Utf8Detokenizer(lambda token: bytes((token,)))
    parts = [((token,), detokenizer.push((token,))) for token in ids]
    rest = detokenizer.flush()
    return ScriptedReply(tokens=(*parts, ((), rest)) if rest else tuple(parts), prompt_tokens=prompt_tokens)


class ScriptedEngine:
    """An in-process ``Engine`` that gives ``reply`` (or the result of calling it) to every request.

    A reply longer than the request's ``max_tokens`` ends there with "length". ``requests`` are
    those received, ``cancelled`` the ids given to ``cancel``.
    """

    def __init__(
        self,
        reply: ScriptedReply | Callable[[GenerationRequest], ScriptedReply],
        *,
        model: str = "scripted",
        context_length: int = 2048,
    ) -> None:
        self._reply = reply
        self._model = LoadedModel(
            model=model,
            context_length=context_length,
            vocabulary_size=256,
            device="cpu",
            compute_type="scripted",
            replicas=1,
        )
        self._stops: dict[str, asyncio.Event] = {}
        self.resumed = asyncio.Event()
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``."""
        if request.model != self._model.model:
            raise ModelNotLoaded(f"The model {request.model} is not loaded. Loaded: {self._model.model}.")
        self.requests.append(request)
        stopped = self._stops[request.request_id] = asyncio.Event()
        reply = self._reply if isinstance(self._reply, ScriptedReply) else self._reply(request)
        try:
            async for chunk in self._play(reply, stopped=stopped, limit=request.max_tokens):
                yield chunk
        finally:
            self._stops.pop(request.request_id, None)

    async def cancel(self, request_id: str) -> None:
        """See ``Engine.cancel``."""
        self.cancelled.append(request_id)
        if request_id in self._stops:
            self._stops[request_id].set()

    def busy(self) -> EngineBusy | None:
        """See ``Engine.busy``."""
        return None

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``."""
        return (self._model,)

    async def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        return EngineStatus(
            models=(ModelStatus(model=self._model.model, state="loaded", running=len(self._stops)),),
        )

    async def tokenize(self, text: TextToTokenize) -> tuple[int, ...]:
        """See ``Engine.tokenize``: one id per UTF-8 byte."""
        return tuple((text.prompt or "".join(message.content for message in text.messages)).encode())

    async def detokenize(self, *, model: str, token_ids: tuple[int, ...]) -> str:
        """See ``Engine.detokenize``."""
        return bytes(token_ids).decode(errors="replace")

    async def _play(self, reply: ScriptedReply, *, stopped: asyncio.Event, limit: int) -> AsyncIterator[TokenChunk]:
        sequence = produced = 0
        reason = reply.finish_reason
        for number, (ids, text) in enumerate(reply.tokens):
            if number == reply.pause_before:
                await _first_of(self.resumed, stopped)
            if stopped.is_set() or produced + len(ids) > limit:
                reason = "cancelled" if stopped.is_set() else "length"
                break
            yield TokenChunk(sequence=sequence, token_ids=ids, text=text, prompt_tokens=reply.prompt_tokens)
            sequence += 1
            produced += len(ids)
            await asyncio.sleep(0)
        else:
            if reply.error is not None:
                raise reply.error
        yield TokenChunk(
            sequence=sequence,
            token_ids=(),
            text="",
            prompt_tokens=reply.prompt_tokens,
            finish_reason=reason,
        )


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
