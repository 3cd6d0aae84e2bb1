"""Every path counts the token ids that the engine produced, whatever happens to the client."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabstir_site.serving import SERVING
from jobs.inference.engine import GenerationFailed
from jobs.inference.scripted import reply_of
from jobs.models import InferenceRequest, TokenUsage
from tests.flows.flow import PATHS, Flow, held_after, prompt_body


@pytest.mark.parametrize("path", PATHS)
def test_each_path_counts_what_the_engine_produced(flow: Flow, path: str):
    job_id = flow.world.open_usdc()
    end = flow.ask(path, tokens=137, job_id=job_id)
    assert (end["tokens_used"], end["usage"]["completion_tokens"], end["finish_reason"]) == (137, 137, "length")
    assert flow.tracked(job_id) == 137
    assert set(TokenUsage.objects.values_list("path", flat=True)) == {path}


@pytest.mark.parametrize("path", ["ws_inference", "ws_prompt"])
def test_a_cancelled_stream_counts_what_was_produced_until_then(flow: Flow, path: str):
    job_id = flow.world.open_usdc()
    flow.use(held_after(37))

    async def play() -> dict:
        async with flow.socket() as socket:
            await _begin(socket, path, job_id)
            await socket.chunks(37)
            await socket.send({"type": "stream_cancel", "reason": "user_cancelled"})
            return (await socket.until("stream_end"))[-1]

    end = flow.run(play())
    assert (end["reason"], end["finish_reason"], end["tokens_used"], end["id"]) == ("cancelled", "cancelled", 37, "p")
    assert flow.tracked(job_id) == 37
    assert InferenceRequest.objects.get().state == "cancelled"


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_goes_away_is_billed_exactly_what_was_produced(
    flow: Flow, path: str, caplog: pytest.LogCaptureFixture
):
    job_id = flow.world.open_usdc()
    flow.use(held_after(37))

    async def play() -> None:
        if path in ("ws_inference", "ws_prompt"):
            socket = flow.socket()
            async with socket:
                await _begin(socket, path, job_id)
                await socket.chunks(37)
        else:
            stream = path == "http_sse"
            exchange = await flow.exchange(prompt_body(500, job_id=job_id, stream=stream)).send()
            if stream:
                await exchange.start()
                await exchange.events(37)
            else:
                await _counted(flow, 37)
            await exchange.drop()
        await flow.settled()

    flow.run(play())
    request = InferenceRequest.objects.get()
    assert (request.state, request.completion_tokens) == ("cancelled", 37)
    assert flow.tracked(job_id) == 37
    assert flow.engine.cancelled
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_goes_away_before_the_first_token_leaves_no_open_request(flow: Flow, path: str):
    job_id = flow.world.open_usdc()
    flow.use(held_after(0))

    async def play() -> None:
        if path in ("ws_inference", "ws_prompt"):
            async with flow.socket() as socket:
                await _begin(socket, path, job_id)
                await _asked(flow)
        else:
            exchange = await flow.exchange(prompt_body(500, job_id=job_id, stream=path == "http_sse")).send()
            await _asked(flow)
            await exchange.drop()
        await flow.settled()

    flow.run(play())
    request = InferenceRequest.objects.get()
    assert (request.state, request.completion_tokens) == ("cancelled", 0)
    assert flow.tracked(job_id) == 0


def test_a_generation_that_fails_half_way_is_billed_to_the_failure(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.use(replace(reply_of("abcde", tokens=21), error=GenerationFailed("out of memory")))
    answer = flow.post(prompt_body(100, job_id=job_id))
    assert (answer.status, answer.json["error_type"]) == (500, "internal_error")
    assert answer.json["details"]["usage"]["completion_tokens"] == 21
    assert flow.tracked(job_id) == 21


@pytest.mark.parametrize(("first", "second"), [("http_json", "ws_prompt"), ("ws_prompt", "http_sse")])
def test_99_and_1_tokens_over_two_paths_are_one_claim_of_100(flow: Flow, first: str, second: str):
    job_id = flow.world.open_usdc()
    flow.ask(first, tokens=99, job_id=job_id)
    flow.drive()
    assert flow.claims_of(job_id) == []
    flow.ask(second, tokens=1, job_id=job_id)
    flow.drive()
    assert flow.claims_of(job_id) == [100]
    assert flow.world.job(job_id).tokens_used == 100


def test_99_and_1_tokens_over_two_sockets_are_one_claim_of_100(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.ask("ws_inference", tokens=99, session_id=f"{job_id}n")
    flow.ask("ws_prompt", tokens=1, session_id=f"{job_id}n")
    flow.drive()
    assert flow.claims_of(job_id) == [100]


@pytest.mark.parametrize("path", PATHS)
def test_a_deposit_that_runs_out_ends_the_generation_and_bills_no_more(flow: Flow, path: str):
    job_id = flow.world.open_eth(deposit=150 * 10**12, price=10**12)
    end = flow.ask(path, tokens=400, job_id=job_id)
    assert (end["tokens_used"], end["finish_reason"]) == (150, "budget")
    assert flow.tracked(job_id) == 150
    flow.drive()
    assert flow.claims_of(job_id) == [150]


def test_two_prompts_at_once_never_bill_more_than_the_deposit(flow: Flow):
    job_id = flow.world.open_eth(deposit=150 * 10**12, price=10**12)

    async def play() -> list[dict]:
        asked = (flow.prompt(path, tokens=120, job_id=job_id) for path in ("http_json", "ws_prompt", "http_sse"))
        return await asyncio.gather(*asked)

    ends = flow.run(play())
    assert flow.tracked(job_id) == 150
    for end in ends:
        # A prompt that came after the others had used the deposit up is refused.
        refusal = end.get("error_type") or end.get("error", {}).get("code")
        assert end.get("finish_reason") in ("budget", "length") or refusal == "deposit_exhausted"
    requests = InferenceRequest.objects.all()
    assert sum(row.completion_tokens - row.unpaid_tokens for row in requests) == 150


TEXT = "Zürich → 東京 👩‍👩‍👧 naïve e\u0301 𝄞 fin."


@pytest.mark.parametrize("path", PATHS)
def test_characters_of_several_bytes_arrive_whole_and_unchanged(flow: Flow, path: str):
    flow.use(reply_of(TEXT))
    end = flow.ask(path, tokens=500)
    text = end["text"]
    assert text.encode() == TEXT.encode()
    assert end["tokens_used"] == len(TEXT.encode())


async def _begin(socket, path: str, job_id: int) -> None:
    body = prompt_body(500, stream=True)
    if path == "ws_inference":
        await socket.send({"type": "inference", "id": "p", "request": {**body, "job_id": job_id}})
    else:
        await socket.ask({"type": "session_init", "jobId": str(job_id)})
        await socket.send({"type": "prompt", "id": "p", "request": body})


async def _asked(flow: Flow) -> None:
    """Until the engine has the request."""
    while not flow.engine.requests:
        await asyncio.sleep(0.001)


async def _counted(flow: Flow, tokens: int) -> None:
    """Until the running completion has counted ``tokens``."""
    while not any(completion and completion.completion_tokens == tokens for completion in SERVING._running.values()):
        await asyncio.sleep(0.001)
