"""Customers with an API key and no job: who is served, what is counted, and where a quota ends an answer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fabstir_site.asgi import application
from fabstir_site.serving import SERVING
from jobs import api_keys
from jobs.api_keys import Limits, NewKey, Scope
from jobs.models import InferenceRequest
from nodes.database import in_database_thread
from tests.flows.clients import Answer, Socket
from tests.flows.flow import Flow, prompt_body


def new_key(*scopes: Scope, **limits: Any) -> NewKey:
    return api_keys.create(
        name="Ada", scopes=scopes or (Scope.INFERENCE,), lifetime=timedelta(days=1), limits=Limits(**limits)
    )


def bearer(new: NewKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {new.secret}"}


def ask(flow: Flow, new: NewKey | None, *, tokens: int = 5, **fields: Any) -> Answer:
    return flow.post(prompt_body(tokens, **fields), headers=None if new is None else bearer(new))


def test_where_a_key_is_required_nobody_without_one_is_served(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVING, "require_api_key", True)
    refusal = ask(flow, None)
    assert (refusal.status, refusal.json["error_type"]) == (401, "api_key_required")
    assert refusal.headers["www-authenticate"] == "Bearer"
    assert ask(flow, new_key()).status == 200
    assert ask(flow, None, job_id=flow.world.open_eth()).status == 200


def test_a_socket_without_a_key_is_not_served_either(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVING, "require_api_key", True)
    headers = bearer(new_key())

    async def play(**options: Any) -> dict[str, Any]:
        async with Socket(application, **options) as socket:
            frames = await socket.ask({"type": "inference", "id": "m", "request": prompt_body(5)})
            return frames[-2] if frames[-2]["type"] == "error" else frames[-1]

    assert flow.run(play())["code"] == "api_key_required"
    assert flow.run(play(headers=headers))["reason"] == "complete"
    assert InferenceRequest.objects.get().api_key is not None


def test_a_key_is_served_where_nobody_else_is_without_a_job(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVING, "serve_unpaid", False)
    assert ask(flow, None).status == 402
    assert ask(flow, new_key()).status == 200


def test_a_request_names_the_key_that_it_came_with(flow: Flow) -> None:
    new = new_key()
    ask(flow, new)
    ask(flow, None)
    assert [request.api_key_id for request in InferenceRequest.objects.order_by("created_at")] == [new.row.pk, None]


def test_a_quota_ends_an_answer_and_refuses_the_next(flow: Flow) -> None:
    new = new_key(tokens_per_day=20)
    cut = ask(flow, new, tokens=50)
    assert (cut.status, cut.json["tokens_used"]) == (200, 20)
    refusal = ask(flow, new)
    assert (refusal.status, refusal.json["error_type"]) == (429, "quota_exceeded")
    assert int(refusal.headers["retry-after"]) > 0
    assert InferenceRequest.objects.count() == 1


def test_requests_that_begin_together_do_not_overdraw_a_quota(flow: Flow) -> None:
    new = new_key(tokens_per_day=60)

    async def play() -> list[Answer]:
        sent = [await flow.exchange(prompt_body(30), headers=bearer(new)).send() for _ in range(5)]
        return [await exchange.answer() for exchange in sent]

    statuses = [answer.status for answer in flow.run(play())]
    assert set(statuses) == {200, 429}
    assert sum(row.completion_tokens for row in InferenceRequest.objects.all()) <= 60


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/chat/completions"])
def test_a_key_for_something_else_is_refused(flow: Flow, path: str) -> None:
    refusal = flow.post(prompt_body(5), path=path, headers=bearer(new_key(Scope.MODELS)))
    assert refusal.status == 403
    models = flow.post(b"", path="/v1/models", method="GET", headers=bearer(new_key(Scope.MODELS)))
    assert models.status == 200


def test_a_revoked_key_is_refused_although_its_socket_is_open(flow: Flow) -> None:
    new = new_key()

    async def play() -> None:
        async with Socket(application, headers=bearer(new)) as socket:
            message = {"type": "inference", "id": "m", "request": prompt_body(5)}
            assert (await socket.ask(message))[-1]["reason"] == "complete"
            assert await in_database_thread(api_keys.revoke)(new.row.pk)
            assert (await socket.ask(message))[-2]["code"] == "invalid_api_key"

    flow.run(play())
