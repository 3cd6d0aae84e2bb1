"""Several models: what is loaded when, what makes room, and what may not be unloaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from jobs.inference.engine import EngineUnavailable, GenerationRequest, ModelNotLoaded, RequestRefused, TokenChunk
from jobs.inference.generator import ModelLoadError, TokenGenerator
from jobs.inference.scheduler import Scheduler
from jobs.inference.scripted import Script, ScriptedGenerator
from jobs.inference.shelf import ModelSource, Progress
from tests.plugins.model import EngineProcess, ids_of, request


class Shelved:
    """A model that counts how often it was loaded and freed, and loads only while the gate is open."""

    def __init__(self, name: str, *, memory: int = 100, keep: bool = False, problem: str = "", **script: Any) -> None:
        self.name = name
        self.loads = self.frees = 0
        self.problem = problem
        self.gate = threading.Event()
        self.gate.set()
        self._script = Script(**({"tokens": 3} | script))
        described = replace(ScriptedGenerator(name, script=self._script).loaded, memory_bytes=memory, state="unloaded")
        self.source = ModelSource(description=described, load=self._load, keep=keep)

    def _load(self, progress: Progress) -> TokenGenerator:
        progress(0.5)
        self.gate.wait()
        self.loads += 1
        if self.problem:
            raise ModelLoadError(self.problem)
        shelved = self

        class Freed(ScriptedGenerator):
            def close(self) -> None:
                shelved.frees += 1

        return Freed(self.name, script=self._script)


@asynccontextmanager
async def serving(*models: Shelved, **options: Any) -> AsyncIterator[Scheduler]:
    engine = Scheduler([model.source for model in models], queue_size=8, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def collect(engine: Scheduler, wanted: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(wanted)]


async def used(engine: Scheduler, model: str) -> None:
    """A request, and its batch is over, too."""
    await collect(engine, request(model=model))
    while any(status.batch_rows for status in (await engine.status()).models):
        await asyncio.sleep(0.001)


async def states(engine: Scheduler) -> dict[str, str]:
    return {model.model: model.state for model in await engine.models()}


async def test_kept_models_are_loaded_at_the_start_and_others_by_their_first_request() -> None:
    first, other = Shelved("first", keep=True), Shelved("other")
    async with serving(first, other) as engine:
        assert await states(engine) == {"first": "loaded", "other": "unloaded"}
        assert len(ids_of(await collect(engine, request(model="other")))) == 3
        assert await states(engine) == {"first": "loaded", "other": "loaded"}
    assert (first.frees, other.frees) == (1, 1)


async def test_requests_wait_for_one_load_whose_progress_is_shown() -> None:
    model = Shelved("model")
    model.gate.clear()
    async with serving(model) as engine:
        tasks = [asyncio.create_task(collect(engine, request(model="model", request_id=str(n)))) for n in range(5)]
        while not (loading := (await engine.models())[0]).progress:
            await asyncio.sleep(0.001)
        assert (loading.state, loading.progress) == ("loading", 0.5)
        assert (await engine.status()).models[0].waiting == 5
        model.gate.set()
        replies = await asyncio.gather(*tasks)
    assert [len(ids_of(chunks)) for chunks in replies] == [3] * 5
    assert model.loads == 1


async def test_a_request_that_is_cancelled_while_its_model_loads_never_runs() -> None:
    model = Shelved("model")
    model.gate.clear()
    async with serving(model) as engine:
        task = asyncio.create_task(collect(engine, request(model="model")))
        while (await engine.models())[0].state != "loading":
            await asyncio.sleep(0.001)
        await engine.cancel("request-1")
        assert (await task)[-1].finish_reason == "cancelled"
        model.gate.set()
        await engine.load("model")
        assert (await engine.status()).models[0].batches == 0


async def test_the_model_used_longest_ago_makes_room() -> None:
    models = [Shelved(name, memory=100) for name in "abc"]
    async with serving(*models, memory_limit=250) as engine:
        for name in ("a", "b", "a", "c"):
            await used(engine, name)
        assert await states(engine) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        await used(engine, "b")
        assert await states(engine) == {"a": "unloaded", "b": "loaded", "c": "loaded"}


async def test_pinned_and_busy_models_never_make_room() -> None:
    pinned, busy = Shelved("pinned"), Shelved("busy", hold_after=1, tokens=None)
    late = Shelved("late")
    async with serving(pinned, busy, late, memory_limit=250) as engine:
        await engine.pin("pinned", pinned=True)
        stream = engine.generate(request(model="busy", request_id="held"))
        await anext(stream)
        with pytest.raises(EngineUnavailable, match=r"pinned or busy.*FABSTIR_ENGINE_MEMORY_MB"):
            await collect(engine, request(model="late"))
        assert (await engine.models())[2].state == "failed"
        await stream.aclose()
        while (await engine.status()).models[1].batch_rows:
            await asyncio.sleep(0.001)
        assert len(ids_of(await collect(engine, request(model="late")))) == 3
        assert await states(engine) == {"pinned": "loaded", "busy": "unloaded", "late": "loaded"}


async def test_unload_refuses_what_is_pinned_or_busy() -> None:
    model = Shelved("model", keep=True, hold_after=1, tokens=None)
    async with serving(model) as engine:
        with pytest.raises(RequestRefused, match="pinned"):
            await engine.unload("model")
        await engine.pin("model", pinned=False)
        stream = engine.generate(request(model="model"))
        await anext(stream)
        with pytest.raises(RequestRefused, match="busy"):
            await engine.unload("model")
        await stream.aclose()
        while (await engine.status()).models[0].batch_rows:
            await asyncio.sleep(0.001)
        assert (await engine.unload("model")).state == "unloaded"
        assert model.frees == 1
        assert (await engine.load("model")).state == "loaded"


async def test_an_idle_model_is_unloaded_and_the_default_is_not() -> None:
    default, idle = Shelved("default", keep=True), Shelved("idle")
    async with serving(default, idle, idle_seconds=0.01) as engine:
        await collect(engine, request(model="idle"))
        while (await states(engine))["idle"] != "unloaded":
            await asyncio.sleep(0.01)
        assert await states(engine) == {"default": "loaded", "idle": "unloaded"}
        await collect(engine, request(model="idle"))
    assert idle.loads == 2


async def test_a_model_that_cannot_be_loaded_says_why_and_may_be_tried_again() -> None:
    model = Shelved("model", problem="Cannot load model: CUDA out of memory. Choose a smaller model.")
    async with serving(model) as engine:
        with pytest.raises(EngineUnavailable, match="smaller model"):
            await collect(engine, request(model="model"))
        (shown,) = await engine.models()
        assert (shown.state, shown.problem) == ("failed", model.problem)
        model.problem = ""
        assert len(ids_of(await collect(engine, request(model="model")))) == 3


async def test_an_unknown_model_is_named_by_every_operation() -> None:
    async with serving(Shelved("model")) as engine:
        for operation in (engine.load("x"), engine.unload("x"), engine.pin("x", pinned=True)):
            with pytest.raises(ModelNotLoaded, match=r"x is not served. Served: model"):
                await operation


async def test_the_operations_work_over_the_socket(engine_process: EngineProcess) -> None:
    first = {"id": "first", "scripted": {}, "default": True}
    client = engine_process.start(first, {"id": "other", "scripted": {"tokens": 4}})
    assert [model.state for model in await client.models()] == ["loaded", "unloaded"]
    assert (await client.load("other")).state == "loaded"
    assert (await client.pin("other", pinned=True)).pinned
    with pytest.raises(RequestRefused, match="pinned"):
        await client.unload("other")
    await client.pin("other", pinned=False)
    assert (await client.unload("other")).state == "unloaded"
    assert len(ids_of([chunk async for chunk in client.generate(request(model="other"))])) == 4
    status = await client.status()
    assert [(model.model, model.tokens_generated) for model in status.models] == [("first", 0), ("other", 4)]
    with pytest.raises(ModelNotLoaded):
        await client.load("absent")
    await client.close()
