"""Admission, order, cancellation and the end of the scheduler, with scripted models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    ModelNotLoaded,
    RequestRefused,
    TokenChunk,
)
from jobs.inference.generator import Batch
from jobs.inference.scheduler import Scheduler
from jobs.inference.scripted import Script, ScriptedGenerator
from jobs.inference.shelf import ready
from tests.plugins.model import ids_of, request, text_of


class Gated(ScriptedGenerator):
    """Counts what runs at the same time and runs only while the gate is open."""

    def __init__(self, script: Script) -> None:
        super().__init__("scripted", script=script)
        self.gate = threading.Event()
        self.started: list[str] = []
        self.running = self.most = 0
        self.closed = False
        self._lock = threading.Lock()

    def run(self, batch: Batch) -> None:
        with self._lock:
            self.started += [row.request.request_id for row in batch.rows]
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait()
        try:
            super().run(batch)
        finally:
            with self._lock:
                self.running -= 1

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def scheduler(generator: ScriptedGenerator, *, queue_size: int = 4) -> AsyncIterator[Scheduler]:
    engine = Scheduler([ready(generator)], queue_size=queue_size)
    try:
        yield engine
    finally:
        if isinstance(generator, Gated):
            generator.gate.set()
        await engine.close()


def scripted(**fields: object) -> ScriptedGenerator:
    return ScriptedGenerator("scripted", script=replace(Script(), **fields))  # type: ignore[arg-type]


async def collect(engine: Scheduler, wanted: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(wanted)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def test_a_reply_is_delivered_whole() -> None:
    async with scheduler(scripted(text="日本 🎉", tokens=11)) as engine:
        chunks = await collect(engine, request("abc", max_tokens=50))
    assert text_of(chunks) == "日本 🎉"
    assert ids_of(chunks) == list("日本 🎉".encode())
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "stop"
    assert {chunk.prompt_tokens for chunk in chunks} == {3}


async def test_max_tokens_ends_with_length() -> None:
    async with scheduler(scripted()) as engine:
        chunks = await collect(engine, request(max_tokens=7))
    assert len(ids_of(chunks)) == 7
    assert chunks[-1].finish_reason == "length"


async def test_the_context_ends_a_generation_with_length() -> None:
    async with scheduler(scripted(context_length=10)) as engine:
        chunks = await collect(engine, request("12345678", max_tokens=7))
    assert len(ids_of(chunks)) == 2
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize("length", [10, 11])
async def test_a_prompt_that_leaves_no_room_is_refused(length: int) -> None:
    async with scheduler(scripted(context_length=10)) as engine:
        with pytest.raises(ContextLengthExceeded) as caught:
            await collect(engine, request("x" * length))
    assert (caught.value.prompt_tokens, caught.value.context_length) == (length, 10)


async def test_an_unknown_model_is_refused() -> None:
    async with scheduler(scripted()) as engine:
        with pytest.raises(ModelNotLoaded, match="scripted"):
            await collect(engine, request(model="other"))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"top_logprobs": 21},
        {"patience_seconds": -1.0},
        {"stop": tuple("abcdefghijklmnopq")},
    ],
)
async def test_impossible_options_are_refused(fields: dict[str, Any]) -> None:
    async with scheduler(scripted()) as engine:
        with pytest.raises(RequestRefused, match="out of range"):
            await collect(engine, request(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "x"}, {"prompt_ids": (1,)}, {"messages": ()}, {"messages": (), "prompt": "x", "prompt_ids": (1,)}],
)
async def test_a_request_has_exactly_one_kind_of_prompt(fields: dict[str, Any]) -> None:
    async with scheduler(scripted()) as engine:
        with pytest.raises(RequestRefused, match="Exactly one"):
            await collect(engine, request(**fields))


@pytest.mark.parametrize("ids", [(), (256,), (-1,)])
async def test_prompt_ids_outside_the_vocabulary_are_refused(ids: tuple[int, ...]) -> None:
    async with scheduler(scripted()) as engine:
        with pytest.raises(RequestRefused, match="0 to 255"):
            await collect(engine, request(messages=(), prompt_ids=ids))


async def test_never_more_run_than_there_are_replicas_and_in_order() -> None:
    generator = Gated(Script(tokens=3, replicas=2, batch_rows=1))
    async with scheduler(generator, queue_size=6) as engine:
        tasks = [asyncio.create_task(collect(engine, request(request_id=str(n)))) for n in range(8)]
        await until(lambda: generator.running == 2)
        generator.gate.set()
        await asyncio.gather(*tasks)
    assert generator.most == 2
    assert sorted(generator.started[:2]) == ["0", "1"]
    assert sorted(generator.started) == [str(n) for n in range(8)]


async def test_a_full_queue_is_busy_at_once_and_recovers() -> None:
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    async with scheduler(generator, queue_size=1) as engine:
        tasks = [asyncio.create_task(collect(engine, request(request_id=str(n)))) for n in range(2)]
        await until(lambda: generator.running == 1)
        with pytest.raises(EngineBusy) as caught:
            await anext(engine.generate(request(request_id="2")))
        assert caught.value.retry_after >= 1
        generator.gate.set()
        await asyncio.gather(*tasks)
        assert len(ids_of(await collect(engine, request(request_id="3")))) == 3


async def test_it_tells_when_every_queue_is_full_and_when_there_is_room_again() -> None:
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    async with scheduler(generator, queue_size=1) as engine:
        told: list[EngineBusy | None] = []
        engine.watch_room(told.append)
        tasks = [asyncio.create_task(collect(engine, request(request_id="0")))]
        await until(lambda: generator.running == 1)
        assert (told, engine.busy()) == ([], None)
        tasks.append(asyncio.create_task(collect(engine, request(request_id="1"))))
        await until(lambda: bool(told))
        assert isinstance(told[0], EngineBusy)
        assert isinstance(engine.busy(), EngineBusy)
        await engine.cancel("1")
        await until(lambda: len(told) == 2)
        assert (told[1], engine.busy()) == (None, None)
        tasks.append(asyncio.create_task(collect(engine, request(request_id="2"))))
        await until(lambda: len(told) == 3)
        generator.gate.set()
        await asyncio.gather(*tasks)
        assert (len(told), told[3], engine.busy()) == (4, None, None)


async def test_a_full_engine_whose_models_are_taken_away_is_soon_not_full() -> None:
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    async with scheduler(generator, queue_size=0) as engine:
        task = asyncio.create_task(collect(engine, request()))
        await until(lambda: engine.busy() is not None)
        engine._shelf.replace([])
        assert isinstance(engine.busy(), EngineBusy)
        await until(lambda: engine.busy() is None)
        generator.gate.set()
        await task


async def test_a_request_id_is_used_once_at_a_time() -> None:
    generator = Gated(Script(tokens=3))
    async with scheduler(generator) as engine:
        first = asyncio.create_task(collect(engine, request()))
        await until(lambda: generator.running == 1)
        with pytest.raises(RequestRefused, match="request-1"):
            await collect(engine, request())
        generator.gate.set()
        await first
        await collect(engine, request())


async def test_cancelling_a_running_request_ends_it_with_exact_ids() -> None:
    async with scheduler(scripted(text="0123456789", hold_after=5)) as engine:
        chunks: list[TokenChunk] = []
        async for chunk in engine.generate(request(max_tokens=100)):
            chunks.append(chunk)
            if len(ids_of(chunks)) == 5:
                await engine.cancel("request-1")
        assert ids_of(chunks) == list(b"01234")
        assert text_of(chunks) == "01234"
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["cancelled"]
        assert chunks[-1].finish_reason == "cancelled"


async def test_a_character_that_cancellation_cut_is_flushed() -> None:
    async with scheduler(scripted(text="a🎉", hold_after=3)) as engine:
        chunks: list[TokenChunk] = []
        async for chunk in engine.generate(request(max_tokens=100)):
            chunks.append(chunk)
            if len(ids_of(chunks)) == 3:
                await engine.cancel("request-1")
    assert text_of(chunks) == bytes(ids_of(chunks)).decode(errors="replace") == "a\ufffd"


async def test_cancelling_a_queued_request_never_runs_it() -> None:
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    async with scheduler(generator) as engine:
        first = asyncio.create_task(collect(engine, request(request_id="first")))
        await until(lambda: generator.running == 1)
        queued = asyncio.create_task(collect(engine, request(request_id="queued")))
        await asyncio.sleep(0)
        await engine.cancel("queued")
        chunks = await queued
        generator.gate.set()
        await first
    assert generator.started == ["first"]
    assert [(chunk.token_ids, chunk.finish_reason) for chunk in chunks] == [((), "cancelled")]


async def test_cancelled_requests_give_their_places_back() -> None:
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    async with scheduler(generator, queue_size=1) as engine:
        first = asyncio.create_task(collect(engine, request(request_id="first")))
        await until(lambda: generator.running == 1)
        for number in range(5):
            queued = asyncio.create_task(collect(engine, request(request_id=f"q{number}")))
            await asyncio.sleep(0)
            await engine.cancel(f"q{number}")
            assert [chunk.finish_reason for chunk in await queued] == ["cancelled"]
        generator.gate.set()
        await first
    assert generator.started == ["first"]


async def test_cancelling_an_unknown_request_does_nothing() -> None:
    async with scheduler(scripted()) as engine:
        await engine.cancel("unknown")
        assert len(ids_of(await collect(engine, request(max_tokens=2)))) == 2


async def test_an_abandoned_stream_stops_its_generation() -> None:
    generator = Gated(Script(hold_after=2, replicas=1, batch_rows=1))
    generator.gate.set()
    async with scheduler(generator) as engine:
        stream = engine.generate(request(max_tokens=1000))
        await anext(stream)
        await stream.aclose()
        await until(lambda: generator.running == 0)
        assert len(ids_of(await collect(engine, request(max_tokens=1)))) == 1


async def test_a_failure_comes_after_everything_that_was_produced() -> None:
    async with scheduler(scripted(text="0123456789", fail_after=4)) as engine:
        chunks: list[TokenChunk] = []
        with pytest.raises(GenerationFailed, match="after 4"):
            async for chunk in engine.generate(request()):
                chunks.append(chunk)
        assert ids_of(chunks) == list(b"0123")
        assert all(chunk.finish_reason is None for chunk in chunks)


async def test_closing_cancels_everything_and_frees_the_model() -> None:
    generator = Gated(Script(hold_after=2, replicas=1, batch_rows=1))
    generator.gate.set()
    engine = Scheduler([ready(generator)], queue_size=4)
    tasks = [asyncio.create_task(collect(engine, request(request_id=str(n)))) for n in range(3)]
    await until(lambda: generator.running == 1)
    await engine.close()
    replies = await asyncio.gather(*tasks)
    assert [chunks[-1].finish_reason for chunks in replies] == ["cancelled"] * 3
    assert generator.closed
    with pytest.raises(EngineUnavailable):
        await collect(engine, request())
