"""The models that an engine serves: which are in memory, and which make room for others.

Guarantees: a model is loaded at most once at a time; one that is pinned or busy is never unloaded
(CTranslate2 would ignore it silently); all loaded weights together stay below the memory limit, or
the load is refused with a line that says what to do; a model that is taken away is freed only when
nothing runs or waits for it. All state belongs to the event loop; loading and freeing run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jobs.inference.batching import CPU_COSTS, CUDA_COSTS
from jobs.inference.engine import EngineUnavailable, LoadedModel, ModelNotLoaded, RequestRefused
from jobs.inference.generator import ModelLoadError, TokenGenerator
from jobs.inference.lane import Lane
from jobs.inference.waiting import WaitingRequests

logger = logging.getLogger(__name__)

Progress = Callable[[float], None]

_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be loaded. ``description`` tells what is known before.

    ``load`` blocks, reports progress (0 to 1) from any thread and raises ``ModelLoadError``.
    ``keep`` models are loaded at the start and pinned. Another ``identity`` means other files.
    """

    description: LoadedModel
    load: Callable[[Progress], TokenGenerator]
    keep: bool = True
    identity: str = ""


class ServedModel:
    """One model of the shelf, loaded or not, with the requests that wait for it."""

    def __init__(self, source: ModelSource, *, queue_size: int) -> None:
        self.source = source
        self.waiting = WaitingRequests(capacity=queue_size)
        self.lane: Lane | None = None
        self.pinned = source.keep
        self.progress = 0.0
        self.problem = ""
        self.loading: asyncio.Task[Lane] | None = None
        self.tokens_generated = self.prompt_tokens = self.batches = self.refused = 0

    @property
    def id(self) -> str:
        """The model's name."""
        return self.source.description.model

    @property
    def busy(self) -> bool:
        """Whether requests run, wait or get ready."""
        return bool(self.waiting.new or len(self.waiting)) or (self.lane is not None and self.lane.busy)

    def renew(self, source: ModelSource) -> None:
        """The same files by a newer source; pinned as before, unless the source has another opinion of it now."""
        if source.keep != self.source.keep:
            self.pinned = source.keep
        self.source = source

    def described(self) -> LoadedModel:
        """What is shown to the operator and to clients."""
        if self.lane is not None:
            return replace(
                self.lane.generator.loaded,
                pinned=self.pinned,
                memory_bytes=self.source.description.memory_bytes,
                batch_rows=self.lane.most_rows,
            )
        loading = self.loading is not None
        return replace(
            self.source.description,
            state="loading" if loading else "failed" if self.problem else "unloaded",
            progress=self.progress if loading else 0.0,
            pinned=self.pinned,
            problem=self.problem,
        )


def ready(generator: TokenGenerator) -> ModelSource:
    """A source of a model that is loaded already (scripted ones)."""
    return ModelSource(description=generator.loaded, load=lambda _: generator)


class Shelf:
    """All models of one engine. ``memory_limit`` is in bytes, ``idle_seconds`` may be None: never."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        *,
        queue_size: int,
        memory_limit: int | None,
        idle_seconds: float | None,
        on_change: Callable[[], None],
    ) -> None:
        self._models = {source.description.model: ServedModel(source, queue_size=queue_size) for source in sources}
        self._leaving: list[ServedModel] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue_size = queue_size
        self._when_unknown: Callable[[], None] = lambda: None
        self._memory_limit = memory_limit
        self._idle_seconds = idle_seconds
        self._on_change = on_change
        self._reserved = 0

    def __iter__(self) -> Iterator[ServedModel]:
        """All that may have requests: those that are served, then those that finish what they have begun."""
        return iter((*self._models.values(), *self._leaving))

    def served(self) -> list[ServedModel]:
        """The models that may be asked for, the default one first."""
        return list(self._models.values())

    def get(self, model: str) -> ServedModel:
        """The model of that name. Raises ``ModelNotLoaded``."""
        if model not in self._models:
            self._when_unknown()
        served = self._models.get(model)
        if served is None:
            raise ModelNotLoaded(f"The model {model} is not served. Served: {', '.join(self._models) or 'none'}.")
        return served

    def ask_when_unknown(self, look: Callable[[], None]) -> None:
        """Have ``look`` called before a model is said to be unknown; it may ``replace`` the models."""
        self._when_unknown = look

    def replace(self, sources: Sequence[ModelSource]) -> None:
        """Serve ``sources`` from now on, the default one first.

        A model that stays, with the same files, is not touched. What is new and to be kept begins to
        load. What is gone, or has other files now, takes no more requests, and is freed when those that
        it has are over.
        """
        before = {(served.id, served.source.identity): served for served in reversed(list(self))}
        self._models = {}
        for source in sources:
            served = before.pop((source.description.model, source.identity), None)
            if served is None:
                served = ServedModel(source, queue_size=self._queue_size)
            elif served in self._leaving:  # it came back before it was gone
                served.pinned = source.keep
            served.renew(source)
            self._models[served.id] = served
        leaving, self._leaving = self._leaving, list(before.values())
        for served in self._leaving:
            served.pinned = False
            if served not in leaving:
                self._keep(asyncio.create_task(self._let_go(served), name=f"let go of {served.id}"))
        for served in self._models.values():
            if served.pinned and served.lane is None:
                self._begin_to_load(served)

    async def load(self, served: ServedModel) -> Lane:
        """Its lane, loaded now if it is not. Raises ``EngineUnavailable``."""
        if served.lane is not None:
            return served.lane
        try:
            return await asyncio.shield(self._begin_to_load(served))
        except ModelLoadError as error:
            raise EngineUnavailable(str(error)) from error

    async def unload(self, served: ServedModel) -> None:
        """Free its memory. Raises ``RequestRefused`` if it is busy, pinned or being loaded."""
        if served.loading is not None or served.busy:
            raise RequestRefused(f"The model {served.id} is busy. Try again when its requests have ended.")
        if served.pinned:
            raise RequestRefused(f"The model {served.id} is pinned. Unpin it first.")
        if served.lane is not None:
            await self._free(served)

    async def unload_idle(self) -> None:
        """Free the models that were not used for ``idle_seconds``."""
        if self._idle_seconds is None:
            return
        for served in self._removable():
            lane = served.lane
            if lane is None or not self._is_removable(served):
                continue  # used since the list was made
            if time.monotonic() - lane.last_used >= self._idle_seconds:
                logger.info("unloading %s: not used for %.0f s", served.id, self._idle_seconds)
                await self._free(served)

    async def close(self) -> None:
        """Free everything."""
        for task in self._tasks:
            task.cancel()
        for served in self:
            if served.loading is not None:
                await asyncio.wait([served.loading])
            if served.lane is not None:
                await self._free(served)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin_to_load(self, served: ServedModel) -> asyncio.Task[Lane]:
        """The task that loads it, begun now if there is none."""
        if served.loading is None:
            served.problem = ""
            served.progress = 0.0
            served.loading = asyncio.create_task(self._load(served), name=f"load {served.id}")
            served.loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return served.loading

    async def _let_go(self, served: ServedModel) -> None:
        """Free a model that is no longer served once nothing of it runs, waits or loads."""
        while served in self._leaving and (served.loading is not None or served.busy):
            await asyncio.sleep(_LOOK_SECONDS)
        if served in self._leaving:  # else it came back
            self._leaving.remove(served)
            await self._free(served)
            logger.info("let go of %s: it is no longer served", served.id)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, served: ServedModel) -> Lane:
        size = served.source.description.memory_bytes
        loop = asyncio.get_running_loop()

        def report(part: float) -> None:
            loop.call_soon_threadsafe(setattr, served, "progress", part)

        try:
            await self._make_room(size, model=served.id)
            self._reserved += size
            try:
                generator = await asyncio.to_thread(served.source.load, report)
            finally:
                self._reserved -= size
            costs = CUDA_COSTS if generator.loaded.device == "cuda" else CPU_COSTS
            served.lane = Lane(generator, waiting=served.waiting, costs=costs, on_change=self._on_change)
            logger.info("loaded %s", served.described())
            return served.lane
        except ModelLoadError as error:
            served.problem = str(error)
            logger.error("%s", error)
            raise
        finally:
            served.loading = None

    async def _make_room(self, size: int, *, model: str) -> None:
        """Free the models used longest ago until ``size`` bytes fit. Raises ``ModelLoadError``."""
        limit = self._memory_limit
        if limit is None:
            return
        for served in self._removable():
            if self._used() + size <= limit:
                return
            if not self._is_removable(served):
                continue  # used since the list was made
            logger.info("unloading %s to make room for %s", served.id, model)
            await self._free(served)
        if self._used() + size > limit:
            raise ModelLoadError(
                f"Cannot load {model}: it takes {size // 10**6} MB, and {self._used() // 10**6} of"
                f" {limit // 10**6} MB are taken by models that are pinned or busy."
                " Unpin one or raise FABSTIR_ENGINE_MEMORY_MB."
            )

    def _used(self) -> int:
        loaded = [served for served in self if served.lane is not None]
        return self._reserved + sum(served.source.description.memory_bytes for served in loaded)

    def _removable(self) -> list[ServedModel]:
        """Loaded models that nobody uses or pinned, the one used longest ago first."""
        removable = [
            (served.lane.last_used, number, served)
            for number, served in enumerate(self)
            if served.lane is not None and self._is_removable(served)
        ]
        return [served for _, _, served in sorted(removable, key=lambda entry: entry[:2])]

    @staticmethod
    def _is_removable(served: ServedModel) -> bool:
        return served.lane is not None and not served.pinned and not served.busy

    async def _free(self, served: ServedModel) -> None:
        lane, served.lane = served.lane, None
        if lane is not None:
            served.batches += lane.batches_started
            await asyncio.to_thread(lane.close)
