"""Answers that no made-up request gets, held against the OpenAPI document: signed, paid, claimed, or out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from django.conf import LazySettings
from django.http import HttpResponse
from django.test import AsyncClient

from fabstir_site.serving import SERVING
from jobs import api_keys
from jobs.api_keys import Scope
from jobs.rate_limits import Bucket, RateLimiter
from settlement.host_chain import host_chain
from tests.flows.depositors import Depositor
from tests.flows.flow import Flow, prompt_body

NODE = ("/v1/health", "/health", "/status", "/livez", "/readyz", "/v1/version", "/v1/chains")


class Described:
    """Asks the node, and fails where an answer is not what its document says of that status."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._client = AsyncClient(raise_request_exception=False)
        self._document: dict[str, Any] = flow.run(self._client.get("/v1/openapi.json")).json()

    def get(self, path: str, *, template: str = "", **options: Any) -> HttpResponse:
        """``template`` is the address as the document writes it."""
        answer = self._flow.run(self._client.get(path, **options))
        return self._checked(answer, template or path.partition("?")[0], "get")

    def post(self, path: str, body: Any, *, kind: str = "application/json", **options: Any) -> HttpResponse:
        answer = self._flow.run(self._client.post(path, body, content_type=kind, **options))
        return self._checked(answer, path, "post")

    def _checked(self, answer: HttpResponse, address: str, method: str) -> HttpResponse:
        described = self._document["paths"][address][method]["responses"][str(answer.status_code)]
        schema = described["content"]["application/json"]["schema"]
        validator = jsonschema_rs.validator_for({**schema, "components": self._document["components"]})
        assert [error.message for error in validator.iter_errors(answer.json())] == []
        for name, header in described["headers"].items():
            assert name in answer.headers or not header.get("required"), name
            if name in answer.headers and header["schema"].get("type") != "integer":
                jsonschema_rs.validate(header["schema"], answer.headers[name])
        return answer


@pytest.fixture
def described(flow: Flow) -> Described:
    return Described(flow)


def test_a_signed_authorisation_and_one_that_was_used(flow: Flow, described: Described):
    depositor = Depositor(flow)
    grant = depositor.grant(depositor.open_job())
    body = {
        "sessionId": f"{grant.job_id}n",
        "clientAddress": grant.client,
        "scheme": "eip191",
        "signature": depositor.sign(grant),
        "issuedAt": grant.issued_at,
        "expiresAt": grant.expires_at,
    }
    answers = [described.post("/v1/session-auth", body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]
    token = answers[0].json()["session_token"]
    headers = {"X-Fabstir-Session-Token": token}
    assert described.post("/v1/inference", prompt_body(5, job_id=grant.job_id), headers=headers).status_code == 200
    unknown = {"X-Fabstir-Session-Token": f"{token}x"}
    assert described.post("/v1/inference", prompt_body(5, job_id=grant.job_id), headers=unknown).status_code == 401


def test_a_platforms_authorisation_without_times(flow: Flow, described: Described, monkeypatch: pytest.MonkeyPatch):
    depositor = Depositor(flow)
    monkeypatch.setattr(SERVING, "session_authorizers", {depositor.address: {depositor.address}})
    grant = depositor.grant(depositor.open_job())
    body = {"sessionId": grant.job_id, "clientAddress": grant.client, "scheme": "fc1-session-auth-v1"}
    answer = described.post("/v1/session-auth", {**body, "signature": depositor.sign(grant, scheme="fc1")})
    assert (answer.status_code, "session_token" in answer.json()) == (200, False)


def test_the_use_of_one_key_and_of_all(flow: Flow, described: Described):
    keys = {scope: api_keys.create(name=scope, scopes=[scope]).secret for scope in (Scope.INFERENCE, Scope.USAGE)}
    inference, usage = ({"Authorization": f"Bearer {keys[scope]}"} for scope in (Scope.INFERENCE, Scope.USAGE))
    assert described.post("/v1/inference", prompt_body(5), headers=inference).status_code == 200
    [own] = described.get("/v1/usage", headers=inference).json()["data"]
    assert (own["requests_today"], own["name"]) == (1, "inference")
    assert len(described.get("/v1/usage?all=1", headers=usage).json()["data"]) == 2
    refused = [described.get("/v1/usage?all=1", headers=inference), described.get("/v1/usage")]
    refused += [described.get("/v1/usage?all=yes", headers=usage)]
    assert [answer.status_code for answer in refused] == [403, 401, 400]
    assert refused[1].headers["WWW-Authenticate"] == "Bearer"


def test_the_claims_of_a_job_before_and_after_there_are_any(flow: Flow, described: Described):
    job = flow.world.open_usdc()
    path = {"path": f"/v1/checkpoints/{job}", "template": "/v1/checkpoints/{session}"}
    missing = described.get(**path)
    assert (missing.status_code, missing.json()["error"]) == (404, missing.json()["message"])
    assert missing.json()["request_id"] == missing.headers["X-Request-Id"]
    flow.ask("http_json", tokens=150, job_id=job)
    flow.drive()
    assert len(described.get(**path).json()["checkpoints"]) == 1


def test_a_node_in_order_and_one_without_chain_engine_and_key(described: Described, settings: LazySettings):
    assert described.get("/status").json()["claiming"] is True
    assert [described.get(path).status_code for path in NODE] == [200] * len(NODE)
    environment = replace(settings.ENVIRONMENT, chain_id=5, host_private_key=None, embedded_chain=False)
    settings.ENVIRONMENT = environment
    host_chain.cache_clear()
    assert [described.get(path).status_code for path in NODE] == [200, 200, 200, 200, 503, 200, 200]
    assert described.get("/status").json()["status"] == "maintenance"
    assert described.post("/v1/auth/challenge", {"challenge": "ab" * 32}).status_code == 503


def test_a_body_that_is_no_json_is_refused_where_ever_one_is_taken(described: Described):
    paths = ("/v1/session-auth", "/v1/auth/challenge", "/v1/inference", "/v1/chat/completions", "/tokenize")
    refused = [described.post(path, "a=b", kind="application/x-www-form-urlencoded") for path in paths]
    assert {answer.status_code for answer in refused} == {415}
    too_large = [described.post(path, b"[" + b" " * 1_100_000) for path in paths]
    assert {answer.status_code for answer in too_large} == {413}


class UsedUp(RateLimiter):
    """As if the bucket of every caller were empty."""

    async def _draw(self, buckets: Sequence[Bucket], costs: Sequence[int], *, refuse: bool) -> list[int] | None:
        return [1, 1500, *[0, 60_000] * len(buckets)]


def test_a_caller_whose_limit_is_used_up_is_told_when_to_come_back(
    described: Described, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SERVING, "limits", UsedUp(requests_per_minute=1, tokens_per_minute=1))
    bodies = {
        "/v1/session-auth": {},
        "/v1/inference": prompt_body(5),
        "/v1/completions": prompt_body(5),
        "/tokenize": {"prompt": "Hi."},
    }
    for path, body in bodies.items():
        answer = described.post(path, body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("path", ["/livez", "/v1/health", "/v1/version", "/v1/usage", "/v1/checkpoints/1"])
def test_what_is_read_is_not_posted_to(flow: Flow, path: str):
    """And browsers' checks for forged requests, which are for cookies, do not answer in its place."""
    client = AsyncClient(enforce_csrf_checks=True)
    answer = flow.run(client.post(path, {}))
    assert (answer.status_code, answer.json()["error_type"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]
