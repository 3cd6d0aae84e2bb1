"""The application over a real engine process and the real model: every path counts the ids the engine produced."""

from __future__ import annotations

import pytest

from jobs.inference.client import EngineClient
from jobs.inference.engine import TokenChunk
from nodes.models import ServedModel
from tests.flows.flow import PATHS, Flow, prompt_body
from tests.plugins.model import EngineProcess, ids_of, request, text_of

QUESTION = "Tell me three facts about 東京 🗼 in one sentence each."


@pytest.fixture
def model(flow: Flow, real_engine_process: EngineProcess, default_model) -> str:
    ServedModel.objects.update(is_default=False)
    ServedModel.objects.create(
        id=default_model.id,
        aliases=["real"],
        path="/nowhere",
        source="test",
        architecture="llama",
        quantization="int8",
        context_length=default_model.context_length,
        vocabulary_size=default_model.vocabulary_size,
        manifest_sha256="0" * 64,
        is_default=True,
    )
    flow.use(EngineClient(real_engine_process.socket))
    return str(default_model.id)


def test_all_four_paths_count_the_ids_that_the_engine_itself_reports(flow: Flow, model: str):
    job_id = flow.world.open_usdc()
    asked = request(QUESTION, model=model, max_tokens=40)

    async def raw() -> list[TokenChunk]:
        return [chunk async for chunk in flow.engine.generate(asked)]

    chunks = flow.run(raw())
    ids = ids_of(chunks)
    assert 0 < len(ids) <= 40
    texts = set()
    for path in PATHS:
        end = flow.run(_ask(flow, path, job_id))
        assert end["tokens_used"] == end["usage"]["completion_tokens"] == len(ids), path
        texts.add(end["text"])
    assert texts == {text_of(chunks)}
    assert flow.tracked(job_id) == 4 * len(ids)


async def _ask(flow: Flow, path: str, job_id: int) -> dict:
    body = {**prompt_body(40, model="real"), "prompt": QUESTION}
    if path.startswith("http"):
        return await flow.prompt(path, tokens=40, job_id=job_id, model="real", prompt=QUESTION)
    async with flow.socket() as socket:
        if path == "ws_inference":
            frames = await socket.ask({"type": "inference", "request": {**body, "job_id": job_id}})
        else:
            await socket.ask({"type": "session_init", "session_id": str(job_id)})
            frames = await socket.ask({"type": "prompt", "request": body})
        return {**frames[-1], "text": "".join(frame.get("content", "") for frame in frames)}


def test_a_prompt_beyond_the_context_is_refused_with_both_sizes(flow: Flow, model: str):
    window = ServedModel.objects.get(pk=model).context_length
    body = prompt_body(5, model="real", prompt="word " * (window + 100))
    answer = flow.post(body)
    assert (answer.status, answer.json["error_type"]) == (400, "TOKEN_LIMIT_EXCEEDED")
    details = answer.json["details"]
    assert details["prompt_tokens"] > details["context_window_size"] == window

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await socket.ask({"type": "inference", "id": "m", "request": body})

    error, end = flow.run(play())
    assert (error["error_code"], error["id"]) == ("TOKEN_LIMIT_EXCEEDED", "m")
    assert (error["prompt_tokens"], error["context_window_size"]) == (details["prompt_tokens"], window)
    assert (end["type"], end["reason"]) == ("stream_end", "error")


def test_an_engine_that_is_away_is_a_503_and_one_that_is_back_serves(flow: Flow, engine_process: EngineProcess):
    job_id = flow.world.open_usdc()
    flow.use(EngineClient(engine_process.socket))
    assert flow.post(prompt_body(5, job_id=job_id)).status == 503
    engine_process.start({"id": "scripted", "scripted": {"tokens": None}})
    assert flow.post(prompt_body(25, job_id=job_id)).json["tokens_used"] == 25
    engine_process.kill()
    answer = flow.post(prompt_body(5, job_id=job_id))
    assert (answer.status, answer.json["error_type"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"] == "2"
    engine_process.start({"id": "scripted", "scripted": {"tokens": None}})
    assert flow.post(prompt_body(75, job_id=job_id)).json["tokens_used"] == 75
    assert flow.tracked(job_id) == 100


def test_an_engine_killed_half_way_bills_what_was_delivered(flow: Flow, engine_process: EngineProcess):
    job_id = flow.world.open_usdc()
    engine_process.start({"id": "scripted", "scripted": {"tokens": None, "hold_after": 33}})
    flow.use(EngineClient(engine_process.socket))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.send({"type": "inference", "id": "m", "request": prompt_body(500, job_id=job_id)})
            await socket.chunks(33)
            engine_process.kill()
            return await socket.until("stream_end")

    error, end = flow.run(play())[-2:]
    assert (error["type"], error["code"]) == ("error", "service_unavailable")
    assert (end["reason"], end["tokens_used"]) == ("error", 33)
    assert flow.tracked(job_id) == 33
