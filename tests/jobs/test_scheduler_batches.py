"""Which requests compute together, who goes first, and what a batch does to those that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jobs.inference import lane, waiting
from jobs.inference import scheduler as scheduling
from jobs.inference.engine import EngineBusy, GenerationFailed, GenerationRequest, TokenChunk
from jobs.inference.generator import Batch, OutOfMemory
from jobs.inference.scheduler import Scheduler
from jobs.inference.scripted import Script, ScriptedGenerator
from jobs.inference.shelf import ready
from tests.plugins.model import ids_of, request, text_of


class Observed(ScriptedGenerator):
    """Notes the batches that run; each waits for the gate first. ``capacity`` rows fit into memory."""

    def __init__(self, script: Script, *, capacity: int = 1000) -> None:
        super().__init__("scripted", script=script)
        self.gate = threading.Event()
        self.batches: list[list[str]] = []
        self.capacity = capacity

    def run(self, batch: Batch) -> None:
        self.batches.append(sorted(row.request.request_id for row in batch.rows))
        self.gate.wait()
        if len(batch.rows) > self.capacity:
            raise OutOfMemory("CUDA failed with error out of memory")
        super().run(batch)


def observed(*, capacity: int = 1000, **script: Any) -> Observed:
    return Observed(Script(**script), capacity=capacity)


@asynccontextmanager
async def serving(generator: Observed, *, queue_size: int = 64) -> AsyncIterator[Scheduler]:
    engine = Scheduler([ready(generator)], queue_size=queue_size)
    await engine.start()
    try:
        yield engine
    finally:
        generator.gate.set()
        await engine.close()


async def collect(engine: Scheduler, wanted: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(wanted)]


def ask(engine: Scheduler, *names: str, **fields: Any) -> list[asyncio.Task[list[TokenChunk]]]:
    return [asyncio.create_task(collect(engine, request(request_id=name, **fields))) for name in names]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def running(generator: Observed, count: int) -> None:
    await until(lambda: len(generator.batches) >= count)


async def all_wait(engine: Scheduler, count: int) -> None:
    # Not what the status tells: there, a prompt that is still being encoded waits, too.
    await until(lambda: sum(len(lane.waiting) for lane in engine._lanes_in_turn()) == count)


async def test_sixteen_equal_requests_run_as_two_batches_of_eight() -> None:
    generator = observed(replicas=2, batch_rows=8, tokens=20)
    async with serving(generator) as engine:
        tasks = ask(engine, *(f"{n:02}" for n in range(16)), max_tokens=50)
        await running(generator, 2)
        generator.gate.set()
        replies = await asyncio.gather(*tasks)
    assert [len(batch) for batch in generator.batches] == [8, 8]
    assert [len(ids_of(chunks)) for chunks in replies] == [20] * 16


async def test_few_requests_spread_over_the_free_replicas() -> None:
    generator = observed(replicas=2, batch_rows=8, tokens=5)
    async with serving(generator) as engine:
        tasks = ask(engine, *"abcd")
        await running(generator, 2)
        generator.gate.set()
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in generator.batches] == [2, 2]


async def test_a_request_waits_for_those_that_were_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_LONGEST_WINDOW_SECONDS", 60.0)
    monkeypatch.setattr(lane, "_ANNOUNCED_SECONDS", 60.0)
    generator = observed(replicas=1, tokens=1)
    async with serving(generator) as engine:
        generator.gate.set()
        first = ask(engine, "a", others_coming=2)
        await all_wait(engine, 1)
        second = ask(engine, "b", others_coming=1)
        await all_wait(engine, 2)
        assert generator.batches == []
        third = ask(engine, "c")
        await asyncio.gather(*first, *second, *third)
    assert generator.batches == [["a", "b", "c"]]


async def test_a_request_whose_announced_companions_never_come_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "_LONGEST_WINDOW_SECONDS", 60.0)
    generator = observed(replicas=1, tokens=1)
    async with serving(generator) as engine:
        generator.gate.set()
        await asyncio.gather(*ask(engine, "a", others_coming=1))
    assert generator.batches == [["a"]]


async def test_requests_with_other_sampling_options_run_apart() -> None:
    generator = observed(replicas=1, batch_rows=8, tokens=5)
    async with serving(generator) as engine:
        first = ask(engine, "first")
        await running(generator, 1)
        greedy = ask(engine, "greedy-1", "greedy-2")
        warm = ask(engine, "warm-1", "warm-2", temperature=0.7)
        scored = ask(engine, "scored", top_logprobs=0)
        # A greedy request's other options say nothing.
        same = ask(engine, "greedy-3", top_p=0.5)
        alone = ask(engine, "alone-1", "alone-2", top_logprobs=3)
        await all_wait(engine, 8)
        generator.gate.set()
        await asyncio.gather(*first, *greedy, *warm, *scored, *same, *alone)
    assert sorted(generator.batches[1:]) == [
        ["alone-1"],
        ["alone-2"],
        ["greedy-1", "greedy-2", "greedy-3"],
        ["scored"],
        ["warm-1", "warm-2"],
    ]


async def test_requests_of_very_different_length_run_apart() -> None:
    generator = observed(replicas=1, batch_rows=8, tokens=5)
    async with serving(generator) as engine:
        first = ask(engine, "first", max_tokens=5)
        await running(generator, 1)
        short = [collect(engine, request("x" * 20, request_id=f"short-{n}", max_tokens=5)) for n in range(2)]
        long = [collect(engine, request("x" * 900, request_id=f"long-{n}", max_tokens=5)) for n in range(2)]
        tasks = [asyncio.create_task(one) for one in (*short, *long)]
        await all_wait(engine, 4)
        generator.gate.set()
        await asyncio.gather(*first, *tasks)
    assert sorted(generator.batches[1:]) == [["long-0", "long-1"], ["short-0", "short-1"]]


async def test_a_row_that_ends_is_answered_while_its_batch_goes_on() -> None:
    generator = observed(replicas=1, hold_after=30)
    generator.gate.set()
    async with serving(generator) as engine:
        long = asyncio.create_task(collect(engine, request(request_id="long", max_tokens=500)))
        short = asyncio.create_task(collect(engine, request(request_id="short", max_tokens=3)))
        assert len(ids_of(await short)) == 3
        while (await engine.status()).models[0].tokens_generated < 33:
            await asyncio.sleep(0.001)
        assert not long.done()
        await engine.cancel("long")
        assert len(ids_of(await long)) == 30


async def test_cancelling_one_row_leaves_the_others_in_the_batch() -> None:
    generator = observed(replicas=1, text="0123456789", hold_after=4)
    generator.gate.set()
    async with serving(generator) as engine:
        replies: dict[str, list[TokenChunk]] = {name: [] for name in "abc"}

        async def listen(name: str) -> None:
            async for chunk in engine.generate(request(request_id=name, max_tokens=100)):
                replies[name].append(chunk)

        tasks = [asyncio.create_task(listen(name)) for name in replies]
        await running(generator, 1)
        await engine.cancel("b")
        await tasks[1]
        assert replies["b"][-1].finish_reason == "cancelled"
        await until(lambda: text_of(replies["a"]) == text_of(replies["c"]) == "0123")
        assert not tasks[0].done() and not tasks[2].done()
        await engine.cancel("a")
        await engine.cancel("c")
        await asyncio.gather(*tasks)
    assert generator.batches == [["a", "b", "c"]]


async def test_a_higher_priority_goes_first() -> None:
    generator = observed(replicas=1, batch_rows=1, tokens=2)
    async with serving(generator) as engine:
        tasks = ask(engine, "first")
        await running(generator, 1)
        tasks += ask(engine, "unpaid-1", "unpaid-2")
        tasks += ask(engine, "paid", priority=1)
        await all_wait(engine, 3)
        generator.gate.set()
        await asyncio.gather(*tasks)
    assert generator.batches == [["first"], ["paid"], ["unpaid-1"], ["unpaid-2"]]


async def test_a_low_priority_that_waited_long_goes_before_a_new_high_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AGE_SECONDS", 0.01)
    generator = observed(replicas=1, batch_rows=1, tokens=2)
    async with serving(generator) as engine:
        tasks = ask(engine, "first")
        await running(generator, 1)
        tasks += ask(engine, "old")
        await asyncio.sleep(0.1)
        tasks += ask(engine, "new", priority=3)
        await all_wait(engine, 2)
        generator.gate.set()
        await asyncio.gather(*tasks)
    assert generator.batches == [["first"], ["old"], ["new"]]


async def test_names_take_turns() -> None:
    generator = observed(replicas=1, batch_rows=1, tokens=2)
    async with serving(generator) as engine:
        tasks = ask(engine, "first")
        await running(generator, 1)
        tasks += ask(engine, "greedy-1", "greedy-2", "greedy-3", fair_share="greedy")
        await all_wait(engine, 3)
        tasks += ask(engine, "modest-1", fair_share="modest")
        await all_wait(engine, 4)
        generator.gate.set()
        await asyncio.gather(*tasks)
    assert generator.batches == [["first"], ["greedy-1"], ["modest-1"], ["greedy-2"], ["greedy-3"]]


async def test_patience_ends_a_request_that_waits_and_not_one_that_runs() -> None:
    generator = observed(replicas=1, batch_rows=1, tokens=2)
    async with serving(generator) as engine:
        first = ask(engine, "first", patience_seconds=1.0)
        await running(generator, 1)
        with pytest.raises(EngineBusy) as caught:
            await collect(engine, request(request_id="late", patience_seconds=1.2))
        assert caught.value.retry_after >= 1
        generator.gate.set()
        assert len(ids_of(await first[0])) == 2
    assert generator.batches == [["first"]]


async def test_a_waiting_request_joins_a_running_batch() -> None:
    """The batch is interrupted and goes on with the newcomer; nobody gets an id twice or misses one."""
    generator = observed(replicas=1, batch_rows=8, text="0123456789", seconds_per_token=0.002)
    generator.gate.set()
    async with serving(generator) as engine:
        first = ask(engine, "first", max_tokens=400)
        await running(generator, 1)
        second = ask(engine, "second", max_tokens=50)
        replies = await asyncio.gather(*first, *second)
    assert generator.batches[:2] == [["first"], ["first", "second"]]
    assert [text_of(chunks) for chunks in replies] == ["0123456789" * 40, "0123456789" * 5]
    assert [len(ids_of(chunks)) for chunks in replies] == [400, 50]
    assert [chunk.sequence for chunk in replies[0]] == list(range(len(replies[0])))


async def test_rows_are_restarted_seldom_for_those_that_trickle_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_SHORTEST_SLICE_SECONDS", 1000.0)
    monkeypatch.setattr(lane, "_SETTLING_SECONDS", 0.0)
    generator = observed(replicas=1, batch_rows=8, hold_after=200, seconds_per_token=0.002)
    generator.gate.set()
    async with serving(generator) as engine:
        tasks = ask(engine, "0", max_tokens=300)
        for number in range(1, 7):
            await running(generator, min(number, 4))
            tasks += ask(engine, str(number), max_tokens=300)
            await asyncio.sleep(0.03)
        engine.cancel_all()
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in generator.batches[:4]] == [1, 2, 3, 4]
    assert len(generator.batches) == 4


async def test_a_row_with_a_repetition_penalty_stays_in_its_batch() -> None:
    """What it generated counts for the penalty only within the batch."""
    generator = observed(replicas=1, batch_rows=8, seconds_per_token=0.001)
    generator.gate.set()
    async with serving(generator) as engine:
        first = ask(engine, "first", max_tokens=200, repetition_penalty=1.2)
        await running(generator, 1)
        second = ask(engine, "second", max_tokens=5, repetition_penalty=1.2)
        await asyncio.gather(*first, *second)
    assert generator.batches == [["first"], ["second"]]


async def test_a_long_batch_gives_way_when_its_slice_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_FULL_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(lane, "_INTERRUPTION_FACTOR", 0.0)
    generator = observed(replicas=1, batch_rows=1, text="0123456789", seconds_per_token=0.001)
    generator.gate.set()
    async with serving(generator) as engine:
        long = ask(engine, "long", max_tokens=1500)
        await running(generator, 1)
        short = ask(engine, "short", max_tokens=20)
        assert text_of(await short[0]) == "0123456789" * 2
        assert not long[0].done()
        assert text_of(await long[0]) == "0123456789" * 150
    assert generator.batches == [["long"], ["short"], ["long"]]


async def test_a_batch_that_ends_soon_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_FULL_SLICE_SECONDS", 0.5)
    monkeypatch.setattr(lane, "_INTERRUPTION_FACTOR", 0.0)
    monkeypatch.setattr(scheduling, "_TICK_SECONDS", 0.001)
    generator = observed(replicas=1, batch_rows=1, seconds_per_token=0.01)
    generator.gate.set()
    async with serving(generator) as engine:
        await collect(engine, request(request_id="teaches the speed", max_tokens=10))
        tasks = ask(engine, "short", "waits", max_tokens=60)
        await asyncio.gather(*tasks)
    assert generator.batches[1:] == [["short"], ["waits"]]


async def test_a_batch_that_does_not_fit_into_memory_is_tried_in_halves() -> None:
    generator = observed(replicas=1, batch_rows=8, tokens=5, capacity=3)
    async with serving(generator) as engine:
        tasks = ask(engine, *"abcdefgh")
        await running(generator, 1)
        generator.gate.set()
        replies = await asyncio.gather(*tasks)
        (model,) = await engine.models()
    assert [len(ids_of(chunks)) for chunks in replies] == [5] * 8
    assert [len(batch) for batch in generator.batches[:3]] == [8, 4, 2]
    assert model.batch_rows == 2


async def test_a_request_that_does_not_fit_alone_is_told_what_to_do() -> None:
    generator = observed(replicas=1, tokens=5, capacity=0)
    generator.gate.set()
    async with serving(generator) as engine:
        with pytest.raises(GenerationFailed, match="Shorten the prompt"):
            await collect(engine, request())


async def test_the_status_counts_what_runs_waits_and_was_done() -> None:
    generator = observed(replicas=1, batch_rows=2, tokens=5)
    async with serving(generator, queue_size=7) as engine:
        tasks = ask(engine, "a", "b")
        await running(generator, 1)
        tasks += ask(engine, "c")
        await all_wait(engine, 1)
        (status,) = (await engine.status()).models
        assert (status.running, status.waiting, status.queue_size, status.batch_rows) == (2, 1, 7, (2,))
        generator.gate.set()
        await asyncio.gather(*tasks)
        (status,) = (await engine.status()).models
    assert (status.tokens_generated, status.prompt_tokens, status.batches) == (15, 15, 2)
