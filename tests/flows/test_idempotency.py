"""``Idempotency-Key``: whatever happens on the way, nothing is generated and billed twice."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from fabstir_site.serving import SERVING
from jobs import idempotency, tasks
from jobs.inference.engine import GenerationFailed
from jobs.inference.scripted import ScriptedReply
from jobs.models import InferenceRequest, KeptAnswer, KeptAnswerState
from tests.flows.clients import Answer, Exchange
from tests.flows.flow import Flow, endless, held_after, prompt_body

KEY = {"Idempotency-Key": "5f0c6a52-0001"}
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 5}


def send(flow: Flow, tokens: int = 5, *, headers: dict[str, str] = KEY, **fields: Any) -> Answer:
    return flow.post(prompt_body(tokens, **fields), headers=headers)


def generated() -> int:
    return InferenceRequest.objects.count()


def test_the_same_request_gets_the_same_answer_and_is_generated_once(flow: Flow) -> None:
    job_id = flow.world.open_eth()
    first, again = (send(flow, job_id=job_id) for _ in range(2))
    assert (again.status, again.raw) == (first.status, first.raw)
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (generated(), flow.tracked(job_id)) == (1, 5)


def test_the_openai_api_keeps_answers_too(flow: Flow) -> None:
    first, again = (flow.post(CHAT, path="/v1/chat/completions", headers=KEY) for _ in range(2))
    assert (first.status, again.raw, generated()) == (200, first.raw, 1)


def test_without_a_key_every_request_is_a_new_one(flow: Flow) -> None:
    assert [send(flow, headers={}).status for _ in range(2)] == [200, 200]
    assert (generated(), KeptAnswer.objects.count()) == (2, 0)


@pytest.mark.parametrize("other", [{"prompt": "Another."}, {"max_tokens": 6}, {"temperature": 0.5}])
def test_another_body_under_the_same_key_is_a_conflict(flow: Flow, other: dict[str, Any]) -> None:
    send(flow)
    refusal = flow.post(prompt_body(tokens=5) | other, headers=KEY)
    assert (refusal.status, refusal.json["error_type"], generated()) == (409, "idempotency_conflict", 1)


def test_another_address_under_the_same_key_is_a_conflict(flow: Flow) -> None:
    send(flow)
    refusal = flow.post(CHAT, path="/v1/chat/completions", headers=KEY)
    assert (refusal.status, refusal.json["error"]["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
def test_a_malformed_key_is_refused(flow: Flow, key: str) -> None:
    assert send(flow, headers={"Idempotency-Key": key}).status == 400
    assert generated() == 0


def test_a_request_under_way_is_not_begun_again(flow: Flow) -> None:
    engine = flow.use(held_after(2))

    async def play() -> tuple[Answer, Answer]:
        exchange = await flow.exchange(prompt_body(5), headers=KEY).send()
        await _until(lambda: engine.requests, "a generation")
        second = await (await flow.exchange(prompt_body(5), headers=KEY).send()).answer()
        engine.resumed.set()
        return await exchange.answer(), second

    first, second = flow.run(play())
    assert (second.status, second.json["error_type"]) == (409, "idempotency_in_flight")
    assert second.headers["retry-after"] == "2"
    assert (first.status, send(flow).raw, generated()) == (200, first.raw, 1)


def test_of_fifty_at_once_one_is_generated(flow: Flow) -> None:
    async def play() -> list[int]:
        sent = [await flow.exchange(prompt_body(5), headers=KEY).send() for _ in range(50)]
        return [(await exchange.answer()).status for exchange in sent]

    statuses = flow.run(play())
    assert set(statuses) <= {200, 409} and 200 in statuses
    assert generated() == 1


def test_a_client_that_went_away_finds_its_answer(flow: Flow) -> None:
    engine = flow.use(held_after(2))

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(5), headers=KEY).send()
        await _until(lambda: engine.requests, "a generation")
        await exchange.drop()
        engine.resumed.set()
        await _until(lambda: not idempotency._going_on, "its end")

    flow.run(play())
    answer = send(flow)
    assert (answer.status, answer.json["tokens_used"], generated()) == (200, 5, 1)


def test_a_client_gone_while_its_key_is_looked_up_may_send_it_again(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = idempotency._claim
    reached, released, claimed = threading.Event(), threading.Event(), threading.Event()

    def slow(**named: Any) -> Any:
        reached.set()
        assert released.wait(10)
        found = original(**named)
        claimed.set()
        return found

    async def play() -> None:
        exchange = await flow.exchange(prompt_body(5), headers=KEY).send()
        await _until(reached.is_set, "the look-up")
        dropping = asyncio.ensure_future(exchange.drop())
        await asyncio.sleep(0.01)
        released.set()
        await dropping
        await _until(claimed.is_set, "the row")
        await _until(lambda: not idempotency._going_on, "its release")

    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "_claim", slow)
        flow.run(play())
    assert (generated(), send(flow).status, generated()) == (0, 200, 1)


def test_a_refusal_is_not_kept(flow: Flow) -> None:
    assert send(flow, model="unknown").status == 404
    assert not KeptAnswer.objects.exists()
    assert send(flow).status == 200


def test_a_failure_after_tokens_were_billed_uses_the_key_up(flow: Flow) -> None:
    flow.use(ScriptedReply(tokens=endless().tokens[:3], error=GenerationFailed("the engine broke")))
    assert send(flow).status >= 500
    flow.use(endless())
    again = send(flow)
    assert (again.status, again.json["error_type"], generated()) == (409, "idempotency_answer_not_kept", 1)


def test_a_finished_stream_cannot_be_had_again(flow: Flow) -> None:
    first = send(flow, stream=True)
    assert first.raw.endswith(b"data: [DONE]\n\n")
    again = send(flow, stream=True)
    assert (again.status, again.json["details"]["reason"], generated()) == (409, "it was streamed", 1)


def test_a_stream_that_its_client_left_cannot_be_begun_again(flow: Flow) -> None:
    flow.use(held_after(3))

    async def play() -> None:
        exchange: Exchange = await flow.exchange(prompt_body(50, stream=True), headers=KEY).send()
        await exchange.start()
        await exchange.events(2)
        await exchange.drop()
        await flow.settled()

    flow.run(play())
    flow.use(endless())
    assert send(flow, 50, stream=True).status == 409
    assert generated() == 1


def test_an_answer_that_is_too_long_is_not_kept_and_not_repeated(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_ANSWER_BYTES", 100)
    assert send(flow).status == 200
    again = send(flow)
    assert (again.status, again.json["error_type"], generated()) == (409, "idempotency_answer_not_kept", 1)
    assert not bytes(KeptAnswer.objects.get().body)


def test_a_request_whose_process_died_is_not_repeated(flow: Flow) -> None:
    send(flow)
    long_ago = timezone.now() - timedelta(minutes=2)
    dead = {"state": KeptAnswerState.IN_FLIGHT, "status": None, "alive_at": long_ago}
    KeptAnswer.objects.update(**dead)
    again = send(flow)
    assert (again.json["details"]["reason"], generated()) == ("the process that gave it ended", 1)


def test_a_key_belongs_to_its_caller(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    send(flow)
    with monkeypatch.context() as patched:
        patched.setattr("jobs.http_callers.client_address", lambda *_, **__: "198.51.100.9")
        other = send(flow)
    assert (other.status, "idempotent-replayed" in other.headers, generated()) == (200, False, 2)


def test_a_key_is_free_again_after_a_day(flow: Flow) -> None:
    send(flow)
    flow.chain_world.clock.advance(24 * 3600 + 1)
    assert "idempotent-replayed" not in send(flow).headers
    assert (generated(), KeptAnswer.objects.count()) == (2, 1)


def test_old_answers_and_too_many_are_deleted(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        send(flow, headers={"Idempotency-Key": f"key-{number}"})
    monkeypatch.setattr(idempotency, "MAX_ANSWERS", 3)
    tasks.forget_old_access()
    assert sorted(KeptAnswer.objects.values_list("key", flat=True)) == ["key-2", "key-3", "key-4"]
    flow.chain_world.clock.advance(24 * 3600 + 1)
    tasks.forget_old_access()
    assert not KeptAnswer.objects.exists()


async def _until(condition: Any, what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited in vain for {what}: {SERVING._running}")
