"""Sessions over WebSockets: what ends them, what does not, and the order in which a socket is answered."""

from __future__ import annotations

import asyncio
import threading
import uuid

import pytest

from fabstir_site.serving import SOCKETS
from jobs import sessions
from jobs.inference.engine import ContextLengthExceeded, GenerationRequest
from jobs.inference.scripted import ScriptedEngine
from jobs.models import SocketPresence
from nodes.database import in_database_thread
from tests.flows.clients import Socket, text_of
from tests.flows.flow import Flow, endless, held_after, prompt_body


class SmallContext(ScriptedEngine):
    """Has room for two messages."""

    async def generate(self, request: GenerationRequest):
        if len(request.messages) > 2:
            raise ContextLengthExceeded(prompt_tokens=3000, context_length=2048)
        async for chunk in super().generate(request):
            yield chunk


async def _init(socket: Socket, job_id: int) -> dict:
    return (await socket.ask({"type": "session_init", "id": "i", "session_id": str(job_id)}))[-1]


async def _prompt(socket: Socket, text: str, *, tokens: int = 5, id: str = "p") -> list[dict]:
    return await socket.ask({"type": "prompt", "id": id, "request": {**prompt_body(tokens), "prompt": text}})


def test_a_dropped_socket_ends_its_session_only_after_the_grace_period(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.ask("ws_prompt", tokens=40, job_id=job_id)
    assert flow.close_due_sessions(grace=60) == []
    assert flow.session(job_id).state == "open"
    flow.chain_world.clock.advance(61)
    assert flow.close_due_sessions(grace=60) == [flow.session(job_id).pk]
    assert flow.session(job_id).close_reason == "client disconnected"
    flow.drive()
    assert flow.claims_of(job_id) == [40]
    assert flow.session(job_id).state == "completed"
    assert flow.world.job(job_id).tokens_used == 40


def test_a_socket_that_is_bound_while_the_only_other_one_leaves_holds_the_session_open(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    job_id = flow.world.open_usdc()
    original, reached, released = sessions.attach_socket, threading.Event(), threading.Event()

    def slow(*arguments, **named):
        reached.set()
        assert released.wait(10)
        return original(*arguments, **named)

    async def play() -> list[int]:
        async with flow.socket() as staying:
            async with flow.socket() as leaving:
                await _init(leaving, job_id)
                monkeypatch.setattr(sessions, "attach_socket", slow)
                await staying.send({"type": "session_init", "id": "i", "session_id": str(job_id)})
                while not reached.is_set():
                    await asyncio.sleep(0.001)
            released.set()
            await staying.until("session_init_ack")
            [connection] = SOCKETS._connections.values()
            return SOCKETS.bound_sessions(connection)

    assert flow.run(play()) == [flow.session(job_id).pk]


def test_a_session_resumed_within_the_grace_period_goes_on(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.ask("ws_prompt", tokens=40, job_id=job_id)
    flow.chain_world.clock.advance(50)

    async def resume() -> None:
        async with flow.socket() as socket:
            await _init(socket, job_id)
            flow.chain_world.clock.advance(20)
            assert await _in_thread(flow) == []
            assert (await _prompt(socket, "More."))[-1]["tokens_used"] == 5

    flow.run(resume())
    assert flow.tracked(job_id) == 45


def test_a_session_with_another_socket_left_does_not_end(flow: Flow):
    job_id = flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as kept:
            await _init(kept, job_id)
            async with flow.socket() as dropped:
                await _init(dropped, job_id)
            assert await _in_thread(flow, grace=0) == []

    flow.run(play())
    assert flow.close_due_sessions(grace=0) == [flow.session(job_id).pk]


def test_a_socket_that_only_pings_keeps_nothing_open_and_ends_nothing(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(5, job_id=job_id))

    async def play() -> None:
        async with flow.socket() as socket:
            assert (await socket.ask({"type": "ping"}))[-1] == {"type": "pong"}

    flow.run(play())
    assert not SocketPresence.objects.exists()
    assert flow.close_due_sessions(grace=0) == []


def test_the_presence_of_a_process_that_died_expires(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.ask("ws_prompt", tokens=5, job_id=job_id)
    sessions.attach_socket(flow.session(job_id).pk, connection_id=uuid.uuid4())
    flow.chain_world.clock.advance(25)
    assert flow.close_due_sessions(grace=10) == []
    flow.chain_world.clock.advance(10)
    assert flow.close_due_sessions(grace=10) == [flow.session(job_id).pk]


def test_a_live_socket_renews_its_presence(flow: Flow):
    job_id = flow.world.open_usdc()
    connection = uuid.uuid4()
    flow.post(prompt_body(5, job_id=job_id))
    sessions.attach_socket(flow.session(job_id).pk, connection_id=connection)
    flow.chain_world.clock.advance(25)
    sessions.refresh_socket(connection)
    flow.chain_world.clock.advance(25)
    assert flow.close_due_sessions(grace=10) == []


def test_a_session_without_sockets_ends_when_it_was_idle_for_long(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(5, job_id=job_id))
    flow.chain_world.clock.advance(800)
    assert flow.close_due_sessions(idle=900) == []
    flow.chain_world.clock.advance(101)
    assert flow.close_due_sessions(idle=900) == [flow.session(job_id).pk]
    assert flow.session(job_id).close_reason == "idle"


def test_a_session_closes_before_its_job_can_be_timed_out(flow: Flow):
    short = flow.world.open_usdc(max_duration=3600)
    flow.post(prompt_body(5, job_id=short))
    flow.chain_world.clock.advance(3550)
    flow.close_due_sessions(idle=10**6)
    assert flow.session(short).state == "closing"
    flow.drive()
    assert flow.claims_of(short) == [5]
    assert flow.session(short).state == "completed"


def test_a_generation_that_lasts_longer_than_the_idle_time_is_not_cut_off(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.use(held_after(5))

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(20, job_id=job_id, stream=True)).send()
        await exchange.start()
        await exchange.events(5)
        flow.chain_world.clock.advance(950)
        await _in_thread(flow, grace=60)
        flow.engine.resumed.set()
        await exchange.events(15)
        await exchange.drop()
        await flow.settled()

    flow.run(play())
    flow.drive()
    session = flow.session(job_id)
    assert session.tokens_tracked == 20
    assert session.tokens_sealed in (0, 20), "what was generated after the close must be claimed too"


def test_the_client_may_end_its_session_and_the_rest_is_claimed_and_refunded(flow: Flow):
    job_id = flow.world.open_usdc(deposit=1_000_000, price=2000)

    async def play() -> tuple[dict, list[dict]]:
        async with flow.socket() as socket:
            await _init(socket, job_id)
            await _prompt(socket, "One.", tokens=30)
            ended = (await socket.ask({"type": "session_end", "id": "e"}))[-1]
            return ended, await _prompt(socket, "Two.")

    ended, refused = flow.run(play())
    assert (ended["type"], ended["id"], ended["sessions_closed"]) == ("session_end_ack", "e", 1)
    assert (refused[0]["code"], refused[1]["reason"]) == ("session_closed", "error")
    flow.drive()
    assert flow.world.job(job_id).refunded_to_user == 1_000_000 - 30 * 2000
    assert flow.session(job_id).state == "completed"


def test_an_init_before_every_prompt_keeps_the_history(flow: Flow):
    job_id = flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as socket:
            for text in ("One.", "Two.", "Three."):
                acknowledged = await _init(socket, job_id)
                assert (acknowledged["job_id"], acknowledged["session_id"]) == (job_id, str(job_id))
                await _prompt(socket, text)

    flow.run(play())
    said = [[(turn.role, turn.content) for turn in request.messages] for request in flow.engine.requests]
    one, two = [("user", "One."), ("assistant", "abcde")], [("user", "Two."), ("assistant", "abcde")]
    assert said == [one[:1], [*one, two[0]], [*one, *two, ("user", "Three.")]]


def test_an_init_for_another_job_starts_without_history(flow: Flow):
    first, second = flow.world.open_usdc(), flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as socket:
            for job_id in (first, second):
                await _init(socket, job_id)
                await _prompt(socket, f"For {job_id}.")

    flow.run(play())
    assert [len(request.messages) for request in flow.engine.requests] == [1, 1]
    assert (flow.tracked(first), flow.tracked(second)) == (5, 5)


def test_prompts_of_a_socket_are_answered_in_order_and_not_mixed(flow: Flow):
    job_id = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await _init(socket, job_id)
            for number in range(5):
                await socket.send({"type": "prompt", "id": number, "request": prompt_body(10 + number)})
            frames: list[dict] = []
            while sum(frame["type"] == "stream_end" for frame in frames) < 5:
                frames.append(await socket.frame())
            return frames

    frames = flow.run(play())
    ids = [frame["id"] for frame in frames]
    assert ids == sorted(ids)
    assert [frame["tokens_used"] for frame in frames if frame["type"] == "stream_end"] == [10, 11, 12, 13, 14]
    for number in range(5):
        own = [frame for frame in frames if frame["id"] == number]
        assert own[0]["type"] == "stream_chunk"
        assert len(text_of(own)) == 10 + number


@pytest.mark.parametrize("held", [1, 20])
def test_a_cancel_ends_the_stream_before_the_next_init_is_acknowledged(flow: Flow, held: int):
    job_id = flow.world.open_usdc()
    flow.use(held_after(held))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await _init(socket, job_id)
            await socket.send({"type": "prompt", "id": "long", "request": prompt_body(500)})
            await socket.chunks(held)
            await socket.send({"type": "stream_cancel", "session_id": str(job_id), "reason": "user_cancelled"})
            await socket.send({"type": "session_init", "session_id": str(job_id)})
            return await socket.until("session_init_ack")

    frames = flow.run(play())
    assert [frame["type"] for frame in frames[-2:]] == ["stream_end", "session_init_ack"]
    assert (frames[-2]["reason"], frames[-2]["tokens_used"]) == ("cancelled", held)
    assert flow.tracked(job_id) == held


def test_a_cancel_with_nothing_to_cancel_is_silent(flow: Flow):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.send({"type": "stream_cancel", "session_id": "x", "reason": "user_cancelled"})
            return await _prompt(socket, "Go on.")

    frames = flow.run(play())
    assert (frames[-1]["type"], frames[-1]["reason"], frames[-1]["tokens_used"]) == ("stream_end", "complete", 5)


def test_a_conversation_beyond_the_context_goes_on_without_its_history(flow: Flow):
    flow.use(SmallContext(endless(), model="scripted"))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await _prompt(socket, "One.")
            return await _prompt(socket, "Two.")

    assert flow.run(play())[-1]["tokens_used"] == 5


async def _in_thread(flow: Flow, *, grace: int = 60) -> list[int]:
    return await in_database_thread(flow.close_due_sessions)(grace=grace)
