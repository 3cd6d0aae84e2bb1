"""What one socket, and one address, may ask of a process: how many, how often, for how long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fabstir_site.serving import SERVING, SOCKETS
from jobs import sockets
from jobs.completions import CompletionRequest
from jobs.inference.engine import ChatMessage
from jobs.models import DeliveryPath
from jobs.protocol import SessionReference
from jobs.socket_limits import Allowance
from tests.flows.flow import Flow, held_after, prompt_body


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Any:
    def limit(**values: int) -> None:
        monkeypatch.setattr(SOCKETS, "limits", replace(SOCKETS.limits, **values))
        monkeypatch.setattr(sockets, "_LOOK_AFTER_SECONDS", 0.02)

    return limit


def test_an_address_may_have_so_many_sockets_and_another_when_one_is_gone(flow: Flow, limited: Any):
    limited(connections_per_address=2)

    async def play() -> list[dict]:
        async with flow.socket(), flow.socket() as second:
            third = flow.socket()
            refused = await third.refused()
            await second.drop()
            async with flow.socket() as another:
                await another.ask({"type": "ping"})
            return refused

    error, end, close = flow.run(play())
    assert (error["code"], end["reason"], close) == ("rate_limit_exceeded", "error", 1013)
    assert len(SOCKETS) == 0
    assert not SOCKETS._by_address


def test_more_messages_than_allowed_are_refused_and_a_flood_of_them_ends_the_socket(flow: Flow, limited: Any):
    limited(messages_per_second=1)

    async def play() -> tuple[list[dict], int]:
        async with flow.socket() as socket:
            for _ in range(100):
                await socket.send({"type": "ping"})
            return await socket.until_closed()

    frames, code = flow.run(play())
    kinds = [frame["type"] for frame in frames]
    assert kinds[:5] == ["pong"] * 5
    assert {"error", "stream_end"} <= set(kinds)
    assert {frame.get("code") for frame in frames if frame["type"] == "error"} == {"rate_limit_exceeded"}
    assert (code, len(frames) < 100) == (1008, True)


def test_an_allowance_comes_back_with_time() -> None:
    now = [0.0]
    allowance = Allowance(2, clock=lambda: now[0])
    assert [allowance.take() for _ in range(11)] == [True] * 10 + [False]
    now[0] = 1.0
    assert allowance.take()
    assert not allowance.take()
    assert not allowance.overdrawn


def test_a_silent_socket_is_closed_and_one_that_waits_for_its_answer_is_not(flow: Flow, limited: Any):
    limited(idle_seconds=0)
    flow.use(held_after(3))

    async def play() -> tuple[int, list[dict]]:
        async with flow.socket() as busy:
            await busy.send({"type": "inference", "id": "m", "request": prompt_body(10)})
            await busy.chunks(3)
            async with flow.socket() as silent:
                code = await silent.closed_with()
            await asyncio.sleep(0.1)
            flow.engine.resumed.set()
            return code, await busy.until("stream_end")

    code, frames = flow.run(play())
    assert code == 1008
    assert (frames[-1]["reason"], frames[-1]["tokens_used"]) == ("complete", 10)


def test_a_reader_that_was_slow_gets_what_waits_for_it_in_one_piece(flow: Flow):
    request = CompletionRequest(
        reference=SessionReference(),
        model="scripted",
        messages=(ChatMessage(role="user", content="Count."),),
        max_tokens=12,
        temperature=0.0,
        path=DeliveryPath.WS_PROMPT,
    )

    async def play() -> list[tuple[str, int, Any]]:
        completion = await SERVING.start(request)
        await flow.settled()
        return [(event.text, event.tokens, event.finish_reason) async for event in completion.events(merged=True)]

    assert flow.run(play()) == [("abcdefghijab", 12, None), ("", 0, "length")]


def test_idle_sockets_have_no_task_of_their_own(flow: Flow):
    async def play() -> int:
        before = len(asyncio.all_tasks())
        opened = [flow.socket() for _ in range(20)]
        for socket in opened:
            await socket.__aenter__()
        tasks = len(asyncio.all_tasks()) - before
        for socket in opened:
            await socket.drop()
        return tasks

    # The test client and the framework have two for each, and the process one for all.
    assert flow.run(play()) <= 2 * 20 + 1
