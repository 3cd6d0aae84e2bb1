"""The network's client in the clear, frame by frame, and each rule that it needs a host to keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabstir_site.serving import SOCKETS
from jobs.inference.scripted import reply_of
from jobs.models import InferenceRequest, SocketPresence
from tests.flows.clients import Socket, text_of
from tests.flows.flow import Flow, held_after, prompt_body

TEXT = "Zürich → 東京 👩‍👩‍👧 𝄞 "


def init(job: int | str, **fields: Any) -> dict[str, Any]:
    """As the client sends it before every prompt."""
    user = "0x" + "11" * 20
    return {
        "type": "session_init",
        "chain_id": 31337,
        "session_id": str(job),
        "jobId": str(job),
        "user_address": user,
        "id": "i-1",
        **fields,
    }


def prompt(job: int | str, *, tokens: int = 10, text: str = "Count.", **fields: Any) -> dict[str, Any]:
    """As the client sends it: no session id."""
    request = {"model": "scripted", "prompt": text, "max_tokens": tokens, "temperature": 0.7, "stream": True}
    return {
        "type": "prompt",
        "chain_id": 31337,
        "jobId": str(job),
        "prompt": text,
        "web_search": False,
        "max_searches": 0,
        "search_queries": None,
        "request": request,
        "id": "p-1",
        **fields,
    }


async def exchanged(socket: Socket, job: int | str, **fields: Any) -> list[dict[str, Any]]:
    [ack] = await socket.ask(init(job))
    assert ack["type"] == "session_init_ack"
    return await socket.ask(prompt(job, **fields))


def test_an_init_before_every_prompt_a_heartbeat_between_and_one_conversation(flow: Flow):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            [ack] = await socket.ask(init(job))
            assert (ack["id"], ack["session_id"], ack["job_id"], ack["chain_id"]) == ("i-1", str(job), job, 31337)
            await socket.ask(prompt(job, text="One.", tokens=5))
            await socket.ask({"type": "ping"})
            return await exchanged(socket, job, text="Two.", tokens=5)

    frames = flow.run(play())
    assert [frame["type"] for frame in frames[-2:]] == ["stream_chunk", "stream_end"]
    assert (text_of(frames), frames[-1]["tokens_used"]) == ("abcde", 5)
    assert {frame["id"] for frame in frames} == {"p-1"}
    assert [turn.content for turn in flow.engine.requests[-1].messages] == ["One.", "abcde", "Two."]
    assert flow.tracked(job) == 10


def test_a_prompt_of_nothing_but_digits_is_a_prompt(flow: Flow):
    """Some versions of the client send the session's id in place of what the user wrote."""
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await exchanged(socket, job, text=str(job), tokens=5)

    assert text_of(flow.run(play())) == "abcde"
    assert flow.engine.requests[0].messages[-1].content == str(job)


@pytest.mark.parametrize("queries", [None, [], ["today"]])
def test_a_search_that_the_client_asks_for_by_itself_is_never_a_reason_to_refuse(flow: Flow, queries: Any):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await exchanged(socket, job, tokens=5, web_search=True, max_searches=5, search_queries=queries)

    assert text_of(flow.run(play())) == "abcde"


@pytest.mark.parametrize("spelling", ["{}", "{}n"])
def test_a_job_in_either_spelling_is_the_same_job(flow: Flow, spelling: str):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await exchanged(socket, spelling.format(job), tokens=5)

    assert flow.run(play())[-1]["billing"]["job_id"] == str(job)
    assert flow.tracked(job) == 5


def test_a_prompt_that_names_nothing_belongs_to_the_last_init_of_its_socket(flow: Flow):
    first, second = flow.world.open_usdc(), flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as socket:
            for job in (first, second):
                await socket.ask(init(job))
                await socket.ask({"type": "prompt", "id": "p", "prompt": "Count.", "max_tokens": 5})

    flow.run(play())
    assert (flow.tracked(first), flow.tracked(second)) == (5, 5)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["", "a"])
def test_a_chunk_comes_before_every_end(flow: Flow, stream: bool, text: str):
    job = flow.world.open_usdc()
    flow.use(reply_of(text))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.ask(init(job))
            message = prompt(job)
            message["request"]["stream"] = stream
            return await socket.ask(message)

    frames = flow.run(play())
    assert frames[0]["type"] == "stream_chunk"
    assert frames[-1]["type"] == "stream_end"
    assert text_of(frames) == text


def test_an_answer_ends_before_the_client_gives_up_on_it(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    job = flow.world.open_usdc()
    monkeypatch.setattr(SOCKETS, "limits", replace(SOCKETS.limits, plaintext_seconds=1))
    flow.use(held_after(20))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await exchanged(socket, job, tokens=500)

    frames = flow.run(play())
    assert (frames[-1]["reason"], frames[-1]["finish_reason"], frames[-1]["tokens_used"]) == ("complete", "length", 20)
    assert len(text_of(frames)) == 20
    assert flow.tracked(job) == 20


def test_a_prompt_that_no_slot_is_found_for_in_time_is_refused_and_costs_nothing(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    job = flow.world.open_usdc()
    monkeypatch.setattr(SOCKETS, "limits", replace(SOCKETS.limits, plaintext_seconds=1))
    flow.use(held_after(0))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            frames = await exchanged(socket, job, tokens=500)
            await flow.settled()
            return frames

    error, end = flow.run(play())
    assert (error["code"], error["id"], end["reason"]) == ("timeout", "p-1", "error")
    assert flow.tracked(job) == 0
    assert InferenceRequest.objects.get().state == "cancelled"


def test_an_encrypted_or_unlimited_answer_is_not_cut_off(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SOCKETS, "limits", replace(SOCKETS.limits, plaintext_seconds=0))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await socket.ask({"type": "inference", "id": "m", "request": prompt_body(300)})

    assert flow.run(play())[-1]["tokens_used"] == 300


def test_an_error_is_told_in_every_spelling_and_with_the_id_of_its_message(flow: Flow):
    job = flow.world.open_usdc()

    async def play() -> tuple[list[dict], list[dict], list[dict]]:
        async with flow.socket() as socket:
            refused_init = await socket.ask(init("10000000"))
            refused = await socket.ask(prompt(job, tokens=0))
            return refused_init, refused, await exchanged(socket, job, tokens=18)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOCKETS.serving, "serve_unpaid", False)
        refused_init, refused, following = flow.run(play())
    for frames, id in ((refused_init, "i-1"), (refused, "p-1")):
        error, end = frames
        assert (error["type"], error["id"], end["type"], end["id"]) == ("error", id, "stream_end", id)
        assert error["code"] == error["error_code"]
        assert error["message"] == error["error"] != ""
        assert (end["reason"], end["tokens_used"]) == ("error", 0)
    # Clients are known to count an answer twice after a refusal; the host does not.
    assert following[-1]["tokens_used"] == flow.tracked(job) == 18


def test_messages_without_an_id_are_answered_without_one(flow: Flow):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            message = prompt(job, tokens=5)
            del message["id"]
            return await socket.ask(init(job, id=None)) + await socket.ask(message)

    frames = flow.run(play())
    assert not any("id" in frame for frame in frames)
    assert text_of(frames) == "abcde"


def test_no_character_is_split_over_chunks(flow: Flow):
    flow.use(reply_of(TEXT, tokens=len(TEXT.encode())))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await socket.ask({"type": "inference", "id": "m", "request": prompt_body(500)})

    frames = flow.run(play())
    assert text_of(frames) == TEXT
    assert not any("\ufffd" in frame.get("content", "") for frame in frames)


@pytest.mark.parametrize("before", ["nothing", "an init"])
def test_a_cancel_overtakes_what_waits_and_its_end_comes_before_the_next_ack(flow: Flow, before: str):
    """Also where the engine has not begun, and where the prompt itself still waits behind its init."""
    job = flow.world.open_usdc()
    flow.use(held_after(0))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            if before == "nothing":
                await socket.ask(init(job))
            else:
                await socket.send(init(job, id="first"))
            await socket.send(prompt(job, tokens=500, id="long"))
            await socket.send({"type": "stream_cancel", "session_id": str(job), "reason": "user_cancelled"})
            await socket.send(init(job, id="next"))
            frames = await socket.until("session_init_ack")
            while frames[-1]["id"] != "next":
                frames += await socket.until("session_init_ack")
            flow.use(reply_of("fresh"))
            frames += await socket.ask(prompt(job, id="after"))
            await flow.settled()
            return frames

    frames = [frame for frame in flow.run(play()) if frame.get("id") != "first"]
    kinds = [(frame["type"], frame["id"]) for frame in frames]
    assert kinds[:3] == [("stream_chunk", "long"), ("stream_end", "long"), ("session_init_ack", "next")]
    assert (frames[1]["reason"], frames[1]["tokens_used"]) == ("cancelled", 0)
    assert text_of([frame for frame in frames if frame["id"] == "after"]) == "fresh"
    assert flow.tracked(job) == 5


def test_a_second_prompt_without_a_cancel_waits_instead_of_being_lost(flow: Flow):
    job = flow.world.open_usdc()
    flow.use(held_after(3))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.ask(init(job))
            await socket.send(prompt(job, tokens=10, id="one"))
            await socket.chunks(3)
            await socket.send(init(job))
            await socket.send(prompt(job, tokens=4, id="two"))
            flow.engine.resumed.set()
            return await socket.until("session_init_ack") + await socket.until("stream_end")

    frames = flow.run(play())
    ends = [(frame["id"], frame["tokens_used"]) for frame in frames if frame["type"] == "stream_end"]
    assert ends == [("one", 10), ("two", 4)]


def test_a_socket_that_never_sent_an_init_is_neither_bound_nor_settled_nor_limited(flow: Flow):
    """What is left of a dropped client: it reconnects and does nothing but ping."""
    job = flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as zombie:
            async with flow.socket() as socket:
                await exchanged(socket, job, tokens=5)
            for _ in range(100):
                assert (await zombie.ask({"type": "ping"}))[-1] == {"type": "pong"}

    flow.run(play())
    assert not SocketPresence.objects.exists()
    assert flow.close_due_sessions(grace=0) == [flow.session(job).pk]


def test_the_same_question_under_two_ids_is_two_questions(flow: Flow):
    """A copy that a client sent by mistake cannot be told from a question asked again: both are answered."""
    job = flow.world.open_usdc()

    async def play() -> list[list[dict]]:
        async with flow.socket() as socket:
            await socket.ask(init(job))
            for id in ("one", "two"):
                await socket.send(prompt(job, tokens=5, id=id))
            return [await socket.until("stream_end") for _ in range(2)]

    answers = flow.run(play())
    assert [({frame["id"] for frame in frames}, text_of(frames)) for frames in answers] == [
        ({"one"}, "abcde"),
        ({"two"}, "abcde"),
    ]
    assert flow.tracked(job) == 10


def test_the_first_generation_of_clients_needs_neither_greeting_nor_init(flow: Flow):
    job = flow.world.open_usdc()
    request = {"model": "tiny-vicuna", "prompt": "Hi.", "max_tokens": 50, "temperature": 0.7, "stream": True}

    async def play() -> tuple[list[dict], list[dict]]:
        async with flow.socket() as socket:
            bare = await socket.ask({"type": "inference", "request": request, "id": "1758-x"})
            named = await socket.ask({"type": "inference", "request": {**request, "session_id": f"{job}n"}, "id": "2"})
            return bare, named

    bare, named = flow.run(play())
    assert (bare[0]["type"], bare[-1]["type"], bare[-1]["id"]) == ("stream_chunk", "stream_end", "1758-x")
    assert (bare[-1]["billing"]["claimable"], named[-1]["billing"]["claimable"]) == (False, True)
    assert flow.tracked(job) == 50
