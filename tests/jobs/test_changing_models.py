"""Models that come, change and go while the engine runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from jobs.inference.catalog_scheduler import CatalogScheduler
from jobs.inference.client import EngineClient
from jobs.inference.engine import EngineUnavailable, GenerationRequest, ModelNotLoaded, RequestRefused, TokenChunk
from jobs.inference.shelf import ModelSource
from tests.jobs.test_engine_models import Shelved, collect, states, used
from tests.plugins.model import EngineProcess, ids_of, request, text_of

FIRST = {"id": "first", "scripted": {"tokens": 3}, "default": True}
SLOW = {"id": "slow", "scripted": {"text": "0123456789", "tokens": 60, "seconds_per_token": 0.01}}


def write_models(engine: EngineProcess, *models: dict[str, Any]) -> None:
    """What the engine reads when it is told to, or asked for a model that it does not know."""
    path = engine.directory / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"models": list(models)}))


async def answer(client: EngineClient, wanted: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in client.generate(wanted)]


async def names(client: EngineClient) -> list[str]:
    return [model.model for model in await client.models()]


async def test_an_added_model_is_served_when_a_request_names_it_though_nobody_told(
    engine_process: EngineProcess,
) -> None:
    client = engine_process.start(FIRST)
    with pytest.raises(ModelNotLoaded, match="Served: first"):
        await answer(client, request(model="second"))
    write_models(engine_process, FIRST, {"id": "second", "scripted": {"tokens": 5}})
    assert len(ids_of(await answer(client, request(model="second")))) == 5
    assert await names(client) == ["first", "second"]
    await client.close()


async def test_a_removed_model_is_refused_while_what_runs_ends_whole(engine_process: EngineProcess) -> None:
    client = engine_process.start(FIRST, SLOW)
    stream = client.generate(request(model="slow", max_tokens=100))
    chunks = [await anext(stream)]
    write_models(engine_process, FIRST)
    assert [model.model for model in await client.refresh()] == ["first"]
    with pytest.raises(ModelNotLoaded):
        await answer(client, request(model="slow", request_id="late"))
    with pytest.raises(ModelNotLoaded):
        await client.load("slow")
    assert "slow" in [status.model for status in (await client.status()).models]  # it still runs
    chunks += [chunk async for chunk in stream]
    assert (len(ids_of(chunks)), chunks[-1].finish_reason) == (60, "stop")
    while len((await client.status()).models) > 1:
        await asyncio.sleep(0.01)
    deadline = time.monotonic() + 30  # the log line comes when the memory is free, after the model has gone
    while "let go of slow" not in engine_process.output and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert "let go of slow" in engine_process.output
    await client.close()


async def test_other_files_answer_new_requests_and_the_old_ones_those_that_run(engine_process: EngineProcess) -> None:
    client = engine_process.start(FIRST, SLOW)
    stream = client.generate(request(model="slow", max_tokens=100))
    chunks = [await anext(stream)]
    write_models(engine_process, FIRST, {"id": "slow", "scripted": {"text": "new", "tokens": 3}})
    await client.refresh()
    assert text_of(await answer(client, request(model="slow", request_id="other"))) == "new"
    assert [status.model for status in (await client.status()).models] == ["first", "slow"]
    chunks += [chunk async for chunk in stream]
    assert text_of(chunks) == "0123456789" * 6
    await client.close()


async def test_another_default_is_loaded_and_kept_and_the_former_may_go(engine_process: EngineProcess) -> None:
    other = {"id": "other", "scripted": {}}
    client = engine_process.start(FIRST, other)
    write_models(engine_process, FIRST | {"default": False}, other | {"default": True})
    assert [(model.model, model.pinned) for model in await client.refresh()] == [("other", True), ("first", False)]
    while (await client.models())[0].state != "loaded":
        await asyncio.sleep(0.01)
    assert (await client.unload("first")).state == "unloaded"
    with pytest.raises(RequestRefused, match="pinned"):
        await client.unload("other")
    await client.close()


async def test_what_an_operator_pinned_stays_pinned(engine_process: EngineProcess) -> None:
    other = {"id": "other", "scripted": {}}
    client = engine_process.start(FIRST, other)
    await client.pin("other", pinned=True)
    await client.pin("first", pinned=False)
    write_models(engine_process, FIRST, other, {"id": "third", "scripted": {}})
    found = [(model.model, model.state, model.pinned) for model in await client.refresh()]
    assert found == [("first", "loaded", False), ("other", "loaded", True), ("third", "unloaded", False)]
    await client.close()


async def test_a_file_that_cannot_be_used_changes_nothing(engine_process: EngineProcess) -> None:
    client = engine_process.start(FIRST)
    for text in ("{", '{"models": [{"id": "x"}]}', json.dumps({"models": [FIRST, FIRST]})):
        (engine_process.directory / "engine.json").write_text(text)
        with pytest.raises(RequestRefused, match="stay as they were"):
            await client.refresh()
        with pytest.raises(ModelNotLoaded, match="Served: first"):
            await answer(client, request(model="x"))
    assert len(ids_of(await answer(client, request(model="first")))) == 3
    await client.close()


async def test_the_last_model_can_go_and_another_can_come(engine_process: EngineProcess) -> None:
    client = engine_process.start(FIRST)
    write_models(engine_process)
    assert await client.refresh() == ()
    with pytest.raises(ModelNotLoaded, match="Served: none"):
        await answer(client, request(model="first"))
    write_models(engine_process, FIRST)
    assert len(ids_of(await answer(client, request(model="first")))) == 3
    await client.close()


class Listed:
    """Stands for the configuration file: ``models`` is what it names."""

    def __init__(self, *models: Shelved) -> None:
        self.models = models
        self.changed = False

    def read(self) -> tuple[ModelSource, ...]:
        return tuple(replace(model.source, identity=f"files of {id(model)}") for model in self.models)


@asynccontextmanager
async def serving(listed: Listed, **options: Any) -> AsyncIterator[CatalogScheduler]:
    engine = CatalogScheduler(listed, queue_size=8, **options)  # type: ignore[arg-type]
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def test_a_model_that_comes_back_while_it_still_runs_is_not_loaded_twice() -> None:
    first, held = Shelved("first", keep=True), Shelved("held", hold_after=1, tokens=None)
    listed = Listed(first, held)
    async with serving(listed) as engine:
        stream = engine.generate(request(model="held"))
        await anext(stream)
        for models in ([first], [first, held], [first], [first, held]):
            listed.models = tuple(models)
            await engine.refresh()
        assert await states(engine) == {"first": "loaded", "held": "loaded"}
        await stream.aclose()
        while (await engine.status()).models[1].batch_rows:
            await asyncio.sleep(0.001)
        assert (held.loads, held.frees) == (1, 0)
    assert (held.loads, held.frees, first.frees) == (1, 1, 1)


async def test_a_model_that_goes_makes_room_for_the_one_that_comes() -> None:
    old, new = Shelved("old", keep=True), Shelved("new", keep=True)
    listed = Listed(old)
    async with serving(listed, memory_limit=150) as engine:
        listed.models = (new,)
        await engine.refresh()
        while await states(engine) != {"new": "loaded"}:
            await asyncio.sleep(0.001)
        assert old.frees == 1


async def test_a_model_that_goes_while_it_loads_is_freed_and_its_request_answered() -> None:
    first, late = Shelved("first", keep=True), Shelved("late")
    late.gate.clear()
    listed = Listed(first, late)
    async with serving(listed) as engine:
        task = asyncio.create_task(collect(engine, request(model="late")))
        while (await states(engine))["late"] != "loading":
            await asyncio.sleep(0.001)
        listed.models = (first,)
        await engine.refresh()
        late.gate.set()
        assert len(ids_of(await task)) == 3
        while late.frees == 0:
            await asyncio.sleep(0.001)


async def test_a_new_default_that_cannot_be_loaded_says_why_and_the_engine_goes_on() -> None:
    first, broken = Shelved("first", keep=True), Shelved("broken", keep=True, problem="Cannot load broken: no.")
    listed = Listed(first)
    async with serving(listed) as engine:
        listed.models = (broken, first)
        await engine.refresh()
        while (await engine.models())[0].state != "failed":
            await asyncio.sleep(0.001)
        assert (await engine.models())[0].problem == "Cannot load broken: no."
        with pytest.raises(EngineUnavailable, match=r"broken: no"):
            await collect(engine, request(model="broken"))
        await used(engine, "first")
        broken.problem = ""
        await engine.refresh()
        while await states(engine) != {"broken": "loaded", "first": "loaded"}:
            await asyncio.sleep(0.001)


async def test_a_model_is_pinned_though_who_asked_for_it_goes_away_while_it_loads() -> None:
    first, late = Shelved("first", keep=True), Shelved("late")
    late.gate.clear()
    async with serving(Listed(first, late)) as engine:
        order = asyncio.create_task(engine.pin("late", pinned=True))
        while (await states(engine))["late"] != "loading":
            await asyncio.sleep(0.001)
        order.cancel()
        late.gate.set()
        while not (await engine.models())[1].pinned:
            await asyncio.sleep(0.001)
        assert (await engine.models())[1].state == "loaded"
