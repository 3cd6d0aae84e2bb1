"""Any OpenAI-compatible inference server as an ``Engine``: vLLM, llama.cpp's server and others.

Guarantees: tokens are counted by the ids or the usage that the server reports, never by events or
characters; cancelling closes the request's connection, which makes the server stop; prompts are never
logged. The server queues and batches, so ``fair_share`` and ``priority`` have no effect here; what it
does with control tokens written inside a prompt is its own. Does not start or supervise the server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from jobs.inference.engine import (
    EngineBusy,
    EngineStatus,
    EngineUnavailable,
    GenerationRequest,
    LoadedModel,
    ModelNotLoaded,
    ModelStatus,
    RequestRefused,
    TextToTokenize,
    TokenChunk,
)
from jobs.inference.openai_http_generation import Generation
from jobs.inference.openai_http_questions import Questions, list_models, probe
from jobs.inference.openai_http_upstream import Upstream
from jobs.inference.openai_http_wire import Wire

__all__ = ["OpenAIHttpEngine", "Upstream"]


class OpenAIHttpEngine:
    """An ``Engine`` over HTTP. Belongs to the process that uses it; safe on several event loops."""

    def __init__(self, upstream: Upstream) -> None:
        self._wire = Wire(upstream)
        self._upstream = upstream
        self._questions: Questions | None = None
        self._probing: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._generations: dict[str, Generation] = {}
        self._refused: Counter[str] = Counter()
        self._generated: Counter[str] = Counter()
        self._prompted: Counter[str] = Counter()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``. ``prompt_tokens`` of a chunk is 0 until the server has told it."""
        questions = await self._known()
        generation = self._admit(request, questions)
        prompt_tokens = 0
        try:
            async with aclosing(generation.chunks()) as chunks:
                async for chunk in chunks:
                    self._generated[request.model] += chunk.count
                    prompt_tokens = chunk.prompt_tokens
                    yield chunk
        except EngineUnavailable:
            # Whoever answers next may be another server, or another version of it.
            self._questions = None
            raise
        finally:
            del self._generations[request.request_id]
            generation.close()
            self._prompted[request.model] += prompt_tokens

    async def cancel(self, request_id: str) -> None:
        """See ``Engine.cancel``."""
        generation = self._generations.get(request_id)
        if generation is not None:
            generation.stop()

    def busy(self) -> EngineBusy | None:
        """See ``Engine.busy``."""
        if len(self._generations) < self._upstream.in_flight:
            return None
        return EngineBusy(f"{self._upstream.in_flight} requests are under way. Try again later.")

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``. Asks the server each time: it is how one knows that it is there."""
        server = (await self._known()).server
        try:
            listing = await list_models(self._wire)
        except EngineUnavailable:
            self._questions = None
            raise
        return tuple(
            LoadedModel(
                model=served,
                context_length=server.models[known].context_length,
                vocabulary_size=server.models[known].vocabulary_size,
                device="remote",
                compute_type=f"{server.kind}, {server.counting}",
                replicas=max(1, server.slots),
            )
            for served, known in server.names.items()
            if known in listing
        )

    async def status(self) -> EngineStatus:
        """See ``Engine.status``: of the requests of this process. Asks the server nothing."""
        started = Counter(generation.request.model for generation in self._generations.values() if generation.started)
        known = Counter(generation.request.model for generation in self._generations.values())
        return EngineStatus(
            models=tuple(
                ModelStatus(
                    model=model,
                    state="loaded",
                    running=started[model],
                    waiting=known[model] - started[model],
                    queue_size=self._upstream.in_flight,
                    tokens_generated=self._generated[model],
                    prompt_tokens=self._prompted[model],
                    refused=self._refused[model],
                )
                for model in (self._questions.server.names if self._questions else ())
            )
        )

    async def tokenize(self, text: TextToTokenize) -> tuple[int, ...]:
        """See ``Engine.tokenize``. Raises ``RequestRefused`` where the server has no tokenizer."""
        questions = await self._known()
        return await questions.tokenize(_named(text.model, questions), text.messages, text.prompt)

    async def detokenize(self, *, model: str, token_ids: tuple[int, ...]) -> str:
        """See ``Engine.detokenize``. Raises ``RequestRefused`` where the server has no tokenizer."""
        questions = await self._known()
        return await questions.detokenize(_named(model, questions), token_ids)

    async def close(self) -> None:
        """Close the running event loop's connections; a later call opens new ones."""
        await self._wire.close()

    async def _known(self) -> Questions:
        """The server as the probe found it. Raises ``EngineUnavailable``."""
        questions = self._questions
        if questions is None:
            lock = self._probing.setdefault(asyncio.get_running_loop(), asyncio.Lock())
            async with lock:
                questions = self._questions or Questions(self._wire, await probe(self._wire))
                self._questions = questions
        return questions

    def _admit(self, request: GenerationRequest, questions: Questions) -> Generation:
        model = _named(request.model, questions)
        if request.request_id in self._generations:
            raise RequestRefused(f"A request with the id {request.request_id} is running.")
        if (busy := self.busy()) is not None:
            self._refused[request.model] += 1
            raise busy
        generation = Generation(request, model=model, wire=self._wire, questions=questions)
        self._generations[request.request_id] = generation
        return generation


def _named(model: str, questions: Questions) -> str:
    """The server's own name of a served model. Raises ``ModelNotLoaded``."""
    names = questions.server.names
    if model not in names:
        raise ModelNotLoaded(f"The model {model} is not served. Served: {', '.join(names)}.")
    return names[model]
