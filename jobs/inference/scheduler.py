"""Admission and turn: which requests may wait, and which of them start when a replica is free.

Guarantees: a full queue is answered at once; no more batches run than there are replicas and
``slots``; a cancelled or impatient request that waits dies without having run; a cancelled stream
ends with exactly the ids it delivered; a generation whose reader went away leaves its batch within
one token. Delegates the grouping to ``lane``, the models to ``shelf``; knows no sessions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineStatus,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelStatus,
    RequestRefused,
    TextToTokenize,
    TokenChunk,
)
from jobs.inference.generation import Generation
from jobs.inference.lane import Lane
from jobs.inference.memory import give_back
from jobs.inference.options import check_options, own_ids
from jobs.inference.shelf import ModelSource, ServedModel, Shelf
from jobs.inference.waiting import AGE_SECONDS

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
# What a burst needed goes back to the system once nothing has run for so long.
_REST_SECONDS = 2.0


class Scheduler:
    """An in-process ``Engine`` over models. Belongs to one event loop.

    ``queue_size`` is how many requests may wait per model besides those that run or can start at
    once; ``slots`` how many batches may run at the same time, of all models together.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        *,
        queue_size: int,
        slots: int | None = None,
        memory_limit: int | None = None,
        idle_seconds: float | None = None,
    ) -> None:
        self._shelf = Shelf(
            sources,
            queue_size=queue_size,
            memory_limit=memory_limit,
            idle_seconds=idle_seconds,
            on_change=self._dispatch,
        )
        self._slots = slots
        self._admitted: dict[str, _Admission] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._full = False
        self._rested: tuple[tuple[str, float], ...] = ()
        self._on_room: Callable[[EngineBusy | None], None] = lambda _: None
        self._gathering: asyncio.TimerHandle | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the models that are to be kept. Raises ``EngineUnavailable`` with the reason."""
        for served in self._shelf:
            if served.pinned:
                await self._shelf.load(served)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``."""
        changed = asyncio.Event()
        generation = self.open(request, notify=changed.set)
        try:
            while not generation.is_over:
                await changed.wait()
                changed.clear()
                chunk = generation.take()
                if chunk is not None:
                    yield chunk
            if generation.failure is not None:
                raise generation.failure
        finally:
            self.release(generation)

    def open(self, request: GenerationRequest, *, notify: Callable[[], None]) -> Generation:
        """Admit a request; ``notify`` is called in the event loop when ``take`` may have something.

        ``release`` must follow. Raises what ``Engine.generate`` may raise before the first chunk.
        """
        if self._closing:
            raise EngineUnavailable("The engine is shutting down.")
        if request.request_id in self._admitted:
            raise RequestRefused(f"A request with the id {request.request_id} is running.")
        served = self._shelf.get(request.model)
        check_options(request)
        self._require_place(served)
        generation = Generation(request, notify=notify)
        admission = _Admission(generation, served=served)
        self._admitted[request.request_id] = admission
        if request.patience_seconds is not None:
            loop = asyncio.get_running_loop()
            admission.deadline = loop.call_later(request.patience_seconds, self._lose_patience, admission)
        served.waiting.preparing += 1
        self._tell_room()
        self._keep(asyncio.create_task(self._prepare(admission)))
        if not self._ticking:
            self._ticking = self._keep(asyncio.create_task(self._tick()))
        return generation

    def release(self, generation: Generation) -> None:
        """The reader is done with the stream, or gone: what still runs of it is stopped."""
        admission = self._admitted.get(generation.request.request_id)
        if admission is not None and admission.generation is generation:
            del self._admitted[generation.request.request_id]
            if admission.deadline is not None:
                admission.deadline.cancel()
            self._stop(admission)
            admission.served.tokens_generated += generation.produced
            admission.served.prompt_tokens += len(generation.prompt) if generation.has_run else 0

    async def cancel(self, request_id: str) -> None:
        """See ``Engine.cancel``."""
        admission = self._admitted.get(request_id)
        if admission is not None:
            self._stop(admission)

    def busy(self) -> EngineBusy | None:
        """See ``Engine.busy``."""
        if not self._full:
            return None
        # None is served any more where the last was taken away a moment ago.
        return _queue_full(min(map(_retry_after, self._shelf.served()), default=1))

    def watch_room(self, told: Callable[[EngineBusy | None], None]) -> None:
        """Have ``told`` called with ``busy`` when every queue became full, and when there is room again."""
        self._on_room = told

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``."""
        return tuple(served.described() for served in self._shelf)

    async def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        admitted = [admission.generation for admission in self._admitted.values()]
        return EngineStatus(models=tuple(_status(served, admitted=admitted) for served in self._shelf))

    async def load(self, model: str) -> LoadedModel:
        """Load a model now. Raises ``ModelNotLoaded``, ``EngineUnavailable``."""
        served = self._shelf.get(model)
        await self._shelf.load(served)
        return served.described()

    async def unload(self, model: str) -> LoadedModel:
        """Free a model's memory. Raises ``ModelNotLoaded``, ``RequestRefused``."""
        served = self._shelf.get(model)
        await self._shelf.unload(served)
        return served.described()

    async def pin(self, model: str, *, pinned: bool) -> LoadedModel:
        """Load a model and keep it loaded, or let it be unloaded again. Raises like ``load``."""
        served = self._shelf.get(model)
        if pinned:
            await self._shelf.load(served)
        served.pinned = pinned
        return served.described()

    async def tokenize(self, text: TextToTokenize) -> tuple[int, ...]:
        """See ``Engine.tokenize``."""
        lane = await self._shelf.load(self._shelf.get(text.model))
        return await asyncio.wrap_future(lane.encode(text.messages, prompt=text.prompt))

    async def detokenize(self, *, model: str, token_ids: tuple[int, ...]) -> str:
        """See ``Engine.detokenize``."""
        lane = await self._shelf.load(self._shelf.get(model))
        size = lane.generator.loaded.vocabulary_size
        if any(not 0 <= token < size for token in token_ids):
            raise RequestRefused(f"A token id is out of range: {model} has ids 0 to {size - 1}.")
        return lane.generator.decode(token_ids)

    def cancel_all(self) -> None:
        """Refuse new requests and stop all others; their streams end with their last chunks."""
        self._closing = True
        for admission in list(self._admitted.values()):
            self._stop(admission)

    async def close(self) -> None:
        """``cancel_all``, wait until nothing computes, free the models."""
        self.cancel_all()
        if self._gathering is not None:
            self._gathering.cancel()
        if self._ticking is not None:
            self._ticking.cancel()
        await self._shelf.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _require_place(self, served: ServedModel) -> None:
        """Raises ``EngineBusy`` if the queue is full."""
        if not self._has_place(served):
            served.refused += 1
            raise _queue_full(_retry_after(served))

    def _has_place(self, served: ServedModel) -> bool:
        lane = served.lane
        rows = served.source.description.batch_rows if lane is None else lane.most_rows
        free = served.source.description.replicas if lane is None else lane.free_replicas
        if self._slots is not None:
            free = max(0, min(free, self._slots - self._running_batches()))
        return served.waiting.new < served.waiting.capacity + free * rows

    def _tell_room(self) -> None:
        """To be called after whatever may fill a queue or make room in one."""
        served = self._shelf.served()
        full = bool(served) and not any(map(self._has_place, served))
        if full != self._full:
            self._full = full
            self._on_room(self.busy())

    async def _prepare(self, admission: _Admission) -> None:
        """Load the model if it is not, encode the prompt, and let the request wait for its turn."""
        generation, served = admission.generation, admission.served
        try:
            await self._encode(generation, served=served)
        except EngineError as error:
            generation.fail(error)
        except Exception as error:
            logger.exception("the prompt of request %s cannot be encoded", generation.request.request_id)
            generation.fail(GenerationFailed(f"The prompt cannot be encoded: {type(error).__name__}."))
        finally:
            served.waiting.preparing -= 1
        if not generation.stopped.is_set():
            served.waiting.add(generation)
        generation.notify()
        self._dispatch()

    async def _encode(self, generation: Generation, *, served: ServedModel) -> None:
        lane = await self._shelf.load(served)
        if generation.stopped.is_set():
            return
        request = generation.request
        if request.prompt_ids is not None:
            prompt = own_ids(request.prompt_ids, lane=lane)
        else:
            prompt = await asyncio.wrap_future(lane.encode(request.messages, prompt=request.prompt))
        context = lane.generator.loaded.context_length
        if len(prompt) >= context:
            raise ContextLengthExceeded(prompt_tokens=len(prompt), context_length=context)
        limit = min(request.max_tokens, context - len(prompt))
        generation.prepare(prompt, limit=limit, detokenizer=lane.generator.detokenizer())

    def _stop(self, admission: _Admission) -> None:
        generation = admission.generation
        generation.cancel()
        admission.served.waiting.remove([generation])
        generation.notify()
        self._tell_room()

    def _lose_patience(self, admission: _Admission) -> None:
        generation, served = admission.generation, admission.served
        if not generation.has_run and not generation.stopped.is_set():
            served.refused += 1
            generation.fail(
                EngineBusy(
                    f"The request waited for {generation.request.patience_seconds:g} s without being served.",
                    retry_after=_retry_after(served),
                )
            )
            served.waiting.remove([generation])
            generation.notify()
            self._tell_room()

    def _running_batches(self) -> int:
        return sum(len(served.lane.batches) for served in self._shelf if served.lane is not None)

    def _free_slots(self, lane: Lane) -> int:
        free = lane.free_replicas
        return free if self._slots is None else min(free, self._slots - self._running_batches())

    def _dispatch(self) -> None:
        """Start what can start; come back when the batching window of the others ends."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        while True:
            startable = [lane for lane in self._lanes_in_turn() if self._free_slots(lane) > 0]
            now = time.monotonic()
            ready = next((lane for lane in startable if lane.gathers_until() <= now), None)
            if ready is None:
                break
            ready.start(ready.in_turn()[0], slots=self._free_slots(ready))
        if startable:
            wait = min(lane.gathers_until() for lane in startable) - now
            self._gathering = asyncio.get_running_loop().call_later(max(0.0, wait), self._dispatch)
        self._tell_room()

    def _lanes_in_turn(self) -> list[Lane]:
        """The lanes where requests wait, the one whose first request has the better claim first."""
        now = time.monotonic()
        leaders = [
            (served.lane.in_turn()[0], served.lane)
            for served in self._shelf
            if served.lane is not None and len(served.waiting)
        ]
        leaders.sort(key=lambda pair: _claim(pair[0], now=now))
        return [lane for _, lane in leaders]

    async def _tick(self) -> None:
        """Now and then: a slice ends if others wait for it, and what nobody uses is unloaded."""
        while not self._closing:
            await asyncio.sleep(_TICK_SECONDS)
            for lane in self._lanes_in_turn():
                if self._free_slots(lane) > 0:
                    continue
                lanes = [served.lane for served in self._shelf if served.lane is not None and served.lane.batches]
                blocking = [lane] if lane.free_replicas < 1 else lanes
                if any(other.interrupt_for_turn() for other in blocking):
                    break
            await self._shelf.unload_idle()
            self._tell_room()  # the models may be others now
            await self._rest()

    async def _rest(self) -> None:
        """Give memory back when nothing has run for a while, once after each time that something did."""
        lanes = {served.id: served.lane for served in self._shelf if served.lane is not None}
        ran = tuple((model, lane.last_used) for model, lane in lanes.items())
        latest = max((at for _, at in ran), default=0.0)
        resting = not any(lane.busy for lane in lanes.values()) and time.monotonic() - latest >= _REST_SECONDS
        if resting and ran != self._rested:
            self._rested = ran
            await asyncio.to_thread(give_back)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Admission:
    """A request that was let in."""

    def __init__(self, generation: Generation, *, served: ServedModel) -> None:
        self.generation = generation
        self.served = served
        self.deadline: asyncio.TimerHandle | None = None


def _claim(row: Generation, *, now: float) -> tuple[float, float]:
    return (-(row.request.priority + (now - row.arrived) // AGE_SECONDS), row.arrived)


def _retry_after(served: ServedModel) -> int:
    return 1 if served.lane is None else served.lane.retry_after()


def _queue_full(retry_after: int) -> EngineBusy:
    return EngineBusy("The engine's queue is full. Try again later.", retry_after=retry_after)


def _status(served: ServedModel, *, admitted: Sequence[Generation]) -> ModelStatus:
    lane = served.lane
    own = [generation for generation in admitted if generation.request.model == served.id]
    live = [] if lane is None else [len(batch.live()) for batch in lane.batches]
    return ModelStatus(
        model=served.id,
        state=served.described().state,
        running=sum(live),
        waiting=len(served.waiting) + served.waiting.preparing,
        queue_size=served.waiting.capacity,
        batch_rows=tuple(live),
        tokens_generated=served.tokens_generated + sum(generation.produced for generation in own),
        prompt_tokens=served.prompt_tokens + sum(len(row.prompt) for row in own if row.has_run),
        batches=served.batches + (0 if lane is None else lane.batches_started),
        refused=served.refused,
        memory_bytes=served.source.description.memory_bytes if lane is not None else 0,
    )
