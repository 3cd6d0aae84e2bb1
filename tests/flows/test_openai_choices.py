"""Several choices in one answer: together they are one answer, each is billed like any other completion."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from fabstir_site.serving import SERVING
from jobs.access_rules import SpendingPolicy
from jobs.inference.engine import EngineBusy, GenerationFailed, GenerationRequest
from jobs.inference.scripted import ScriptedEngine, ScriptedReply, reply_of
from jobs.models import InferenceRequest, Session
from jobs.protocol import RequestError
from jobs.rate_limits import UNLIMITED, RateLimiter, Standing
from tests.flows.clients import Answer, sse_events
from tests.flows.flow import Flow, endless, held_after

CHAT = "/v1/chat/completions"


def chat_body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Count."}]
    return {"model": "scripted", "messages": messages, "max_tokens": 10, **fields}


def one_fails(after: int) -> Any:
    """The second generation fails after ``after`` tokens, the others wait until they are cancelled."""
    asked: list[GenerationRequest] = []

    def reply(request: GenerationRequest) -> ScriptedReply:
        asked.append(request)
        if len(asked) == 2:
            return ScriptedReply(tokens=reply_of("x" * after).tokens, error=GenerationFailed("It broke."))
        return held_after(3)

    return ScriptedEngine(reply, model="scripted")


def test_a_choice_that_fails_ends_the_others_and_all_is_counted(flow: Flow) -> None:
    job_id = flow.world.open_usdc()
    flow.use(one_fails(after=5))
    answer = flow.post(chat_body(n=3, max_tokens=500, job_id=job_id), path=CHAT)
    flow.run(flow.settled())
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    # The others are cancelled wherever they are; all that was generated until then is told and billed.
    assert answer.json["error"]["details"]["usage"]["completion_tokens"] == flow.tracked(job_id)
    assert 5 <= flow.tracked(job_id) <= 5 + 3 + 3
    assert sorted(InferenceRequest.objects.values_list("state", flat=True)) == ["cancelled", "cancelled", "failed"]


def test_a_choice_that_fails_ends_a_stream_with_an_error_that_has_the_usage(flow: Flow) -> None:
    job_id = flow.world.open_usdc()
    flow.use(one_fails(after=5))
    answer = flow.post(chat_body(n=3, max_tokens=500, job_id=job_id, stream=True), path=CHAT)
    flow.run(flow.settled())
    *_, last = sse_events(answer.raw)
    assert answer.status == 200
    assert answer.raw.endswith(b"data: [DONE]\n\n")
    assert last["error"]["type"] == "server_error"
    assert last["usage"]["completion_tokens"] == last["error"]["details"]["usage"]["completion_tokens"]
    assert last["usage"]["completion_tokens"] == flow.tracked(job_id) >= 5


def test_a_client_that_drops_cancels_every_choice(flow: Flow) -> None:
    job_id = flow.world.open_usdc()
    flow.use(held_after(7))

    async def play(*, stream: bool) -> None:
        exchange = await flow.exchange(chat_body(n=3, max_tokens=500, job_id=job_id, stream=stream), path=CHAT).send()
        while len(flow.engine._stops) < 3:
            await asyncio.sleep(0.001)
        await exchange.drop()
        await flow.settled()

    for stream in (False, True):
        flow.run(play(stream=stream))
        assert flow.engine._stops == {}, "the engine still generates"
    assert set(InferenceRequest.objects.values_list("state", flat=True)) == {"cancelled"}
    assert flow.tracked(job_id) <= 2 * 3 * 7


def test_a_host_that_stops_does_not_pretend_that_the_text_ended(flow: Flow) -> None:
    flow.use(held_after(7))

    async def play() -> Answer:
        exchange = await flow.exchange(chat_body(max_tokens=500), path=CHAT).send()
        while not flow.engine._stops:
            await asyncio.sleep(0.001)
        await SERVING.shut_down()
        return await exchange.answer()

    answer = flow.run(play()).json
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["finish_detail"]) == ("length", "cancelled")
    assert answer["usage"]["completion_tokens"] == InferenceRequest.objects.get().completion_tokens <= 7


def test_the_first_to_use_a_job_may_ask_for_several_choices(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVING, "spending", SpendingPolicy.FIRST_CLAIM)
    job_id = flow.world.open_usdc()
    first = flow.post(chat_body(n=3, job_id=job_id), path=CHAT)
    assert first.status == 200, first.raw
    token = first.json["billing"]["session_token"]
    assert flow.tracked(job_id) == 30
    stranger = flow.post(chat_body(n=2, job_id=job_id), path=CHAT)
    assert stranger.status in (401, 403)
    assert stranger.json["error"]["type"] in ("authentication_error", "permission_error")
    again = flow.post(chat_body(n=2, job_id=job_id), path=CHAT, headers={"X-Fabstir-Session-Token": token})
    assert again.status == 200, again.raw
    assert flow.tracked(job_id) == 50


class Busy(ScriptedEngine):
    """Has no room, and says so."""

    def busy(self) -> EngineBusy | None:
        return EngineBusy("No room.", retry_after=2)


@dataclass(slots=True, kw_only=True)
class Counting(RateLimiter):
    """Admits ``allowed`` requests."""

    allowed: int
    asked: int = 0

    async def admit(self, **of: Any) -> Standing:
        self.asked += 1
        if self.asked > self.allowed:
            raise RequestError(code="rate_limit_exceeded", message="Later.", status=429, retry_after=1)
        return UNLIMITED


def test_several_choices_for_which_there_is_no_room_are_refused_before_anything_is_written(flow: Flow) -> None:
    flow.use(Busy(endless(), model="scripted"))
    refused = flow.post(chat_body(n=3, job_id=flow.world.open_usdc()), path=CHAT)
    assert (refused.status, refused.headers["retry-after"], Session.objects.count()) == (503, "2", 0)


@pytest.mark.parametrize(("allowed", "status", "sessions"), [(0, 429, 0), (3, 200, 1)])
def test_each_choice_counts_once_and_the_first_before_anything_is_written(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, allowed: int, status: int, sessions: int
) -> None:
    limits = Counting(allowed=allowed)
    monkeypatch.setattr(SERVING, "limits", limits)
    answer = flow.post(chat_body(n=3, job_id=flow.world.open_usdc()), path=CHAT)
    assert (answer.status, Session.objects.count(), limits.asked) == (status, sessions, max(1, allowed))


def test_the_deposit_ends_choices_that_run_beside_each_other(flow: Flow) -> None:
    job_id = flow.world.open_eth(deposit=10**14, price=10**12)
    answer = flow.post(chat_body(n=4, max_tokens=60, job_id=job_id), path=CHAT).json
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert "budget" in {choice["finish_detail"] for choice in answer["choices"]}
    assert flow.tracked(job_id) == 100


def test_the_same_key_gives_the_same_answer_and_is_billed_once(flow: Flow) -> None:
    job_id = flow.world.open_usdc()
    sent = {"path": CHAT, "headers": {"Idempotency-Key": "k-1"}}
    first, second = (flow.post(chat_body(n=2, job_id=job_id), **sent) for _ in range(2))
    assert first.json == second.json
    assert second.headers["idempotent-replayed"] == "true"
    assert flow.tracked(job_id) == 20
    other = flow.post(chat_body(job_id=job_id), **sent)
    assert (other.status, other.json["error"]["code"]) == (409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"
