"""Admission and order: a bounded first-come queue before each model's replicas.

Guarantees: a full queue is answered at once; a model computes at most as many generations as it has
replicas, so nothing waits where it cannot be cancelled; a cancelled stream ends with exactly the
ids it delivered; a generation whose reader went away stops within one token. Does not batch rows of
different requests and does not know sessions.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineUnavailable,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelNotLoaded,
    RequestRefused,
    TokenChunk,
)
from jobs.inference.generator import GenerationTask, TokenGenerator

_Outcome = Literal["stop", "length"]


class Scheduler:
    """An in-process ``Engine`` over loaded models. Belongs to one event loop.

    ``queue_size`` is how many requests may wait per model besides those that run.
    """

    def __init__(self, generators: Sequence[TokenGenerator], *, queue_size: int) -> None:
        self._lanes = {generator.loaded.model: _Lane(generator, queue_size=queue_size) for generator in generators}
        self._generations: dict[str, _Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``."""
        generation = self._admit(request)
        try:
            work = await generation.begin()
            async for chunk in generation.chunks(work):
                yield chunk
        finally:
            generation.stop()
            self._forget(generation)

    async def cancel(self, request_id: str) -> None:
        """See ``Engine.cancel``."""
        generation = self._generations.get(request_id)
        if generation is not None:
            generation.stop()

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``."""
        return tuple(lane.generator.loaded for lane in self._lanes.values())

    def cancel_all(self) -> None:
        """Refuse new requests and stop all others; their streams end with their last chunks."""
        self._closing = True
        for generation in self._generations.values():
            generation.stop()

    async def close(self) -> None:
        """``cancel_all``, wait for the streams' ends, free the models."""
        self.cancel_all()
        await self._idle.wait()
        for lane in self._lanes.values():
            await asyncio.to_thread(lane.close)
        self._lanes.clear()

    def _admit(self, request: GenerationRequest) -> _Generation:
        if self._closing:
            raise EngineUnavailable("The engine is shutting down.")
        if request.request_id in self._generations:
            raise RequestRefused(f"A request with the id {request.request_id} is running.")
        lane = self._lanes.get(request.model)
        if lane is None:
            loaded = ", ".join(self._lanes)
            raise ModelNotLoaded(f"The model {request.model} is not loaded. Loaded: {loaded}.")
        _check_options(request)
        lane.admit()
        generation = _Generation(request, lane=lane)
        self._generations[request.request_id] = generation
        self._idle.clear()
        return generation

    def _forget(self, generation: _Generation) -> None:
        del self._generations[generation.request.request_id]
        if not self._generations:
            self._idle.set()


class _Lane:
    """One model with its threads: one per replica, and one that encodes prompts."""

    def __init__(self, generator: TokenGenerator, *, queue_size: int) -> None:
        self.generator = generator
        replicas = generator.loaded.replicas
        self.replicas = ThreadPoolExecutor(replicas, thread_name_prefix="replica")
        self.prompts = ThreadPoolExecutor(1, thread_name_prefix="prompt")
        self._capacity = replicas + queue_size
        self._admitted = 0
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Take a place. Raises ``EngineBusy``."""
        with self._lock:
            if self._admitted >= self._capacity:
                raise EngineBusy("The engine's queue is full. Try again later.")
            self._admitted += 1

    def release(self) -> None:
        """Give a place back; called from the thread that ended the work."""
        with self._lock:
            self._admitted -= 1

    def close(self) -> None:
        """Wait for the threads, then free the model."""
        self.prompts.shutdown()
        self.replicas.shutdown()
        self.generator.close()


class _Generation:
    """One request from admission to its last chunk."""

    def __init__(self, request: GenerationRequest, *, lane: _Lane) -> None:
        self.request = request
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._stopped = threading.Event()
        self._ids: deque[int] = deque()
        self._prompt: tuple[int, ...] = ()
        self._work: Future[_Outcome] | None = None

    async def begin(self) -> Future[_Outcome]:
        """Encode the prompt and queue the work.

        Raises what ``Engine.generate`` may raise before the first chunk.
        """
        try:
            encoding = self._lane.prompts.submit(self._lane.generator.encode, self.request.messages)
            self._prompt = await asyncio.wrap_future(encoding)
            limit = self._limit()
        except BaseException:
            self._lane.release()
            raise
        task = GenerationTask(
            request=self.request,
            prompt=self._prompt,
            limit=limit,
            on_token=self._deliver,
            stopped=self._stopped,
        )
        self._work = self._lane.replicas.submit(self._lane.generator.run, task)
        self._work.add_done_callback(self._ended)
        if self._stopped.is_set():
            self._work.cancel()
        return self._work

    def stop(self) -> None:
        """Stop the generation if it has not ended; one that waits never runs."""
        self._stopped.set()
        if self._work is not None:
            self._work.cancel()

    async def chunks(self, work: Future[_Outcome]) -> AsyncIterator[TokenChunk]:
        """The stream. Several tokens that came together make one chunk."""
        detokenizer = self._lane.generator.detokenizer()
        sequence = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            ended = work.done()
            ids = self._taken()
            text = detokenizer.push(ids) + (detokenizer.flush() if ended else "")
            reason, failure = self._outcome(work) if ended else (None, None)
            if ids or text or reason:
                yield TokenChunk(
                    sequence=sequence,
                    token_ids=ids,
                    text=text,
                    prompt_tokens=len(self._prompt),
                    finish_reason=reason,
                )
                sequence += 1
            if failure is not None:
                raise GenerationFailed(f"The generation failed: {failure}") from failure
            if ended:
                return

    def _outcome(self, work: Future[_Outcome]) -> tuple[FinishReason | None, BaseException | None]:
        if work.cancelled():
            return "cancelled", None
        failure = work.exception()
        if failure is not None:
            return None, failure
        return ("cancelled" if self._stopped.is_set() else work.result()), None

    def _taken(self) -> tuple[int, ...]:
        return tuple(self._ids.popleft() for _ in range(len(self._ids)))

    def _limit(self) -> int:
        context = self._lane.generator.loaded.context_length
        room = context - len(self._prompt)
        if room < 1:
            raise ContextLengthExceeded(prompt_tokens=len(self._prompt), context_length=context)
        return min(self.request.max_tokens, room)

    def _deliver(self, token: int) -> None:
        self._ids.append(token)
        self._loop.call_soon_threadsafe(self._changed.set)

    def _ended(self, work: Future[_Outcome]) -> None:
        self._lane.release()
        self._loop.call_soon_threadsafe(self._changed.set)


def _check_options(request: GenerationRequest) -> None:
    sound = (
        request.max_tokens >= 1
        and 0.0 <= request.temperature <= 2.0
        and request.top_k >= 0
        and 0.0 < request.top_p <= 1.0
        and 0.0 < request.repetition_penalty <= 10.0
    )
    if not sound:
        raise RequestRefused(
            "An option is out of range: max_tokens ≥ 1, temperature 0 to 2, top_k ≥ 0,"
            " top_p above 0 to 1, repetition_penalty above 0 to 10."
        )
