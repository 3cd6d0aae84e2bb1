"""What no client should send: WebSocket. An error is two frames, and the same socket goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabstir_site.serving import SERVING
from jobs.models import InferenceRequest
from tests.flows.clients import Socket
from tests.flows.flow import Flow, prompt_body

GOOD = prompt_body(5)
DEEP = '{"type": ' + "[" * 100_000 + "]" * 100_000 + "}"


def inference(**fields: Any) -> dict[str, Any]:
    return {"type": "inference", "id": "bad", "request": {**GOOD, **fields}}


def prompt(**fields: Any) -> dict[str, Any]:
    return {"type": "prompt", "id": "bad", "request": {**GOOD, **fields}}


# What is sent, the error's code, and whether the frames can echo an id.
MESSAGES: list[tuple[str, Any, str]] = [
    ("malformed JSON", '{"type": ', "invalid_request"),
    ("a JSON array", '["inference"]', "invalid_request"),
    ("deep nesting", DEEP, "invalid_request"),
    ("NaN", '{"type": "ping", "x": NaN}', "invalid_request"),
    ("a binary frame that is no JSON", b"\x00\xff\xfe", "invalid_request"),
    ("a blank frame", " ", "invalid_request"),
    ("no type", {"id": "bad"}, "validation_error"),
    ("an unknown type", {"type": "uploadVectors", "id": "bad"}, "validation_error"),
    ("a type that is a list", {"type": [], "id": "bad"}, "validation_error"),
    ("a type that is an object", {"type": {}, "id": "bad"}, "validation_error"),
    ("an encrypted init", {"type": "encrypted_session_init", "id": "bad"}, "MISSING_PAYLOAD"),
    ("no request", {"type": "inference", "id": "bad"}, "validation_error"),
    ("a request that is a string", {"type": "inference", "id": "bad", "request": "x"}, "validation_error"),
    ("a prompt request that is a list", {"type": "prompt", "id": "bad", "request": [1]}, "validation_error"),
    ("a prompt without a prompt", {"type": "prompt", "id": "bad"}, "validation_error"),
    ("an unknown model", inference(model="gpt-5"), "model_not_found"),
    ("max_tokens 0", inference(max_tokens=0), "validation_error"),
    ("max_tokens -1", inference(max_tokens=-1), "validation_error"),
    ("max_tokens 10^9", inference(max_tokens=10**9), "validation_error"),
    ("max_tokens 5.5", inference(max_tokens=5.5), "validation_error"),
    ('max_tokens "5"', inference(max_tokens="5"), "validation_error"),
    ("max_tokens true", inference(max_tokens=True), "validation_error"),
    ("an empty prompt", inference(prompt=""), "validation_error"),
    ("a prompt that is no string", prompt(prompt={"text": "x"}), "validation_error"),
    ("a lone surrogate", inference(prompt="\ud800"), "validation_error"),
    ("temperature 3", inference(temperature=3), "validation_error"),
    ('temperature "hot"', prompt(temperature="hot"), "validation_error"),
    ('job_id "abc"', inference(job_id="abc"), "validation_error"),
    ("job_id -1", inference(job_id=-1), "validation_error"),
    ("job_id 2^256", inference(job_id=2**256), "validation_error"),
    ("an init for job -1", {"type": "session_init", "id": "bad", "job_id": -1}, "validation_error"),
    ("an init with a list", {"type": "session_init", "id": "bad", "session_id": []}, "validation_error"),
    ("an init with NUL", {"type": "session_init", "id": "bad", "session_id": "a\x00"}, "validation_error"),
]


def check_refusal(name: str, message: Any, code: str, frames: list[dict[str, Any]]) -> str:
    """What is wrong with the two frames of a refusal; empty if nothing is."""
    kinds = [frame["type"] for frame in frames]
    if kinds != ["error", "stream_end"]:
        return f"{name}: {kinds}"
    error, end = frames
    if (error["code"], error["error_code"]) != (code, code) or not error["message"] == error["error"] != "":
        return f"{name}: {error}"
    echoed = message.get("id") if isinstance(message, dict) else None
    if (error.get("id"), end.get("id")) != (echoed, echoed):
        return f"{name}: the id is not echoed: {frames}"
    if (end["reason"], end["tokens_used"]) != ("error", 0):
        return f"{name}: {end}"
    return ""


def test_every_bad_message_is_an_error_and_an_end_and_the_socket_goes_on(flow: Flow):
    job_id = flow.world.open_usdc()

    async def play() -> list[str]:
        problems = []
        async with flow.socket() as socket:
            await _good(socket, job_id, 40)
            flow.engine.requests.clear()
            for name, message, code in MESSAGES:
                problems.append(check_refusal(name, message, code, await socket.ask(message)))
            assert flow.engine.requests == []
            await _good(socket, job_id, 60)
        return [problem for problem in problems if problem]

    assert flow.run(play()) == []
    assert flow.tracked(job_id) == 100
    assert InferenceRequest.objects.count() == 2


def test_a_prompt_without_an_init_is_an_unpaid_prompt_or_refused(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await socket.ask({"type": "prompt", "id": "p", "prompt": "Count.", "max_tokens": 5})

    end = flow.run(play())[-1]
    assert (end["tokens_used"], end["billing"]["claimable"], end["billing"]["reason"]) == (5, False, "no_job")
    monkeypatch.setattr(SERVING, "serve_unpaid", False)
    assert flow.run(play())[0]["code"] == "payment_required"


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 10_000_000])
def test_a_message_beyond_the_limit_ends_the_socket_with_1009(flow: Flow, size: int):
    job_id = flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as socket:
            await _good(socket, job_id, 40)
            frames = await socket.ask("x" * size)
            assert [frame["type"] for frame in frames] == ["error", "stream_end"]
            assert frames[0]["code"] == "payload_too_large"
            assert await socket.closed_with() == 1009
        async with flow.socket() as socket:
            await _good(socket, job_id, 60)

    flow.run(play())
    assert flow.tracked(job_id) == 100


@pytest.mark.parametrize("id", [7, "x" * 300, ["a"], {"a": 1}, "\ud800", "", 0, False])
def test_any_id_is_echoed_as_it_came(flow: Flow, id: Any):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            frames = await socket.ask({**inference(), "id": id})
            return frames + await socket.ask({"type": "nonsense", "id": id})

    frames = flow.run(play())
    assert [json.dumps(frame["id"]) for frame in frames if frame["type"] != "error"] == [
        json.dumps(id) for frame in frames if frame["type"] != "error"
    ]
    assert frames[-1]["reason"] == "error"


@pytest.mark.parametrize(("id", "echoed"), [("x" * 5000, "x" * 1000), (["x" * 5000], None), ({"x" * 5000: 1}, None)])
def test_an_id_that_is_too_long_to_be_repeated_in_every_frame_is_not(flow: Flow, id: Any, echoed: Any):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            frames = await socket.ask({**inference(), "id": id})
            return [*frames, (await socket.ask({"type": "nonsense", "id": id}))[-1]]

    assert {frame.get("id") for frame in flow.run(play())} == {echoed}


def test_more_waiting_messages_than_a_socket_may_have_are_refused(flow: Flow):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            for number in range(40):
                await socket.send({**inference(), "id": number})
            ends = []
            while len(ends) < 40:
                ends.append((await socket.until("stream_end"))[-1])
            return ends

    ends = flow.run(play())
    assert {end["reason"] for end in ends} <= {"complete", "error"}
    complete = [end["id"] for end in ends if end["reason"] == "complete"]
    assert complete == sorted(complete)
    assert len(complete) >= 32


async def _good(socket: Socket, job_id: int, tokens: int) -> None:
    frames = await socket.ask({"type": "inference", "request": prompt_body(tokens, job_id=job_id)})
    assert (frames[-1]["reason"], frames[-1]["tokens_used"]) == ("complete", tokens)
