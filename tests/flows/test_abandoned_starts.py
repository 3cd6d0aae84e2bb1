"""A client that goes away at any moment before its first token leaves nothing running and nothing uncounted."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fabstir_site.request_ids import RequestIdMiddleware
from fabstir_site.serving import SERVING, SOCKETS
from jobs import requests, sessions
from jobs.completions import Serving
from jobs.models import InferenceRequest
from tests.flows.flow import Flow, held_after, prompt_body


@pytest.mark.parametrize("produced", [0, 1, 5])
def test_a_client_gone_while_the_database_is_slow_leaves_closed_books(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, produced: int
):
    job_id = flow.world.open_usdc()
    flow.use(held_after(produced))
    original, reached, released = requests.begin, threading.Event(), threading.Event()

    def slow(*arguments, **named):
        reached.set()
        assert released.wait(10)
        return original(*arguments, **named)

    monkeypatch.setattr(requests, "begin", slow)

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(500, job_id=job_id)).send()
        while not reached.is_set():
            await asyncio.sleep(0.001)
        dropping = asyncio.ensure_future(exchange.drop())
        await asyncio.sleep(0.01)
        released.set()
        await dropping
        await flow.settled()

    flow.run(play())
    request = InferenceRequest.objects.get()
    assert request.state == "cancelled"
    assert flow.tracked(job_id) == request.completion_tokens <= produced
    assert flow.engine._stops == {}, "the engine still generates"


def test_the_engine_is_told_how_many_prompts_are_on_their_way_behind_one(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    original = requests.begin

    def once_both_are_there(*arguments, **named):
        deadline = time.monotonic() + 10
        while not flow.engine.requests and len(SERVING._beginning) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        return original(*arguments, **named)

    monkeypatch.setattr(requests, "begin", once_both_are_there)

    async def play() -> None:
        both = [await flow.exchange(prompt_body(2)).send() for _ in range(2)]
        for exchange in both:
            assert (await exchange.answer()).status == 200

    flow.run(play())
    assert [request.others_coming for request in flow.engine.requests] == [1, 0]
    assert not SERVING._beginning


def test_a_cancel_before_the_first_token_stops_the_prompt_it_means(flow: Flow):
    job_id = flow.world.open_usdc()
    reply = held_after(0)

    async def play() -> tuple[dict, dict]:
        flow.use(reply)
        async with flow.socket() as socket:
            await socket.ask({"type": "session_init", "session_id": str(job_id)})
            await socket.send({"type": "prompt", "id": "a", "request": prompt_body(500)})
            while not flow.engine.requests:
                await asyncio.sleep(0.001)
            await socket.send({"type": "stream_cancel", "session_id": str(job_id)})
            await asyncio.sleep(0.01)
            flow.engine.resumed.set()
            cancelled = (await socket.until("stream_end"))[-1]
            await socket.send({"type": "prompt", "id": "b", "request": prompt_body(5)})
            return cancelled, (await socket.until("stream_end"))[-1]

    cancelled, following = flow.run(play())
    assert (cancelled["id"], cancelled["reason"]) == ("a", "cancelled")
    assert cancelled["tokens_used"] <= 2
    assert (following["id"], following["reason"], following["tokens_used"]) == ("b", "complete", 5)
    assert flow.tracked(job_id) == cancelled["tokens_used"] + 5


def test_a_socket_lost_while_it_is_bound_to_its_session_stops_the_generation(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    job_id = flow.world.open_usdc()
    original, reached, released = sessions.attach_socket, threading.Event(), threading.Event()

    def slow(*arguments, **named):
        reached.set()
        assert released.wait(10)
        return original(*arguments, **named)

    monkeypatch.setattr(sessions, "attach_socket", slow)
    flow.use(held_after(5))

    async def play() -> None:
        async with flow.socket() as socket:
            await socket.send({"type": "inference", "request": prompt_body(500, job_id=job_id)})
            while not reached.is_set():
                await asyncio.sleep(0.001)
            await socket.drop()
        released.set()
        await flow.settled()

    flow.run(play())
    assert InferenceRequest.objects.get().state == "cancelled"
    assert flow.tracked(job_id) <= 5


def test_a_socket_lost_in_the_very_moment_of_its_first_token_stops_the_generation(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    job_id = flow.world.open_usdc()
    flow.use(held_after(5))
    original = Serving.start

    async def start(serving, request):
        completion = await original(serving, request)
        [connection] = SOCKETS._connections.values()
        # Comes before whoever waits for this coroutine is woken.
        asyncio.get_running_loop().call_soon(connection._worker.cancel)
        return completion

    monkeypatch.setattr(Serving, "start", start)

    async def play() -> None:
        async with flow.socket() as socket:
            await socket.send({"type": "inference", "request": prompt_body(500, job_id=job_id)})
            while not SERVING._running:
                await asyncio.sleep(0.001)
            await socket.drop()
        await flow.settled()

    flow.run(play())
    assert InferenceRequest.objects.get().state == "cancelled"
    assert flow.tracked(job_id) <= 5


def test_a_host_that_stops_cancels_what_is_about_to_begin(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    flow.use(held_after(5))
    original, reached, released = requests.begin, threading.Event(), threading.Event()

    def slow(*arguments, **named):
        reached.set()
        assert released.wait(10)
        return original(*arguments, **named)

    monkeypatch.setattr(requests, "begin", slow)

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(500)).send()
        while not reached.is_set():
            await asyncio.sleep(0.001)
        stopping = asyncio.ensure_future(SERVING.shut_down())
        await asyncio.sleep(0.01)
        released.set()
        await asyncio.wait_for(stopping, timeout=10)
        assert (await exchange.answer()).json["finish_reason"] == "cancelled"

    flow.run(play())
    assert InferenceRequest.objects.get().state == "cancelled"


def test_a_client_gone_before_its_stream_is_read_stops_the_generation(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    job_id = flow.world.open_usdc()
    flow.use(held_after(5))
    original, reached, released = RequestIdMiddleware.__call__, asyncio.Event(), asyncio.Event()

    async def slow(self, request):
        response = await original(self, request)
        reached.set()
        await released.wait()
        return response

    monkeypatch.setattr(RequestIdMiddleware, "__call__", slow)

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(500, job_id=job_id, stream=True)).send()
        await asyncio.wait_for(reached.wait(), timeout=10)
        dropping = asyncio.ensure_future(exchange.drop())
        await asyncio.sleep(0.01)
        released.set()
        await dropping
        await asyncio.wait_for(flow.settled(), timeout=10)

    flow.run(play())
    assert InferenceRequest.objects.get().state == "cancelled"
    assert flow.tracked(job_id) == 5
