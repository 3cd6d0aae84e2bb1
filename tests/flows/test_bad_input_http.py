"""What no client should send: HTTP. Every refusal has its status and code, and leaves the server as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.models import InferenceRequest
from tests.flows.flow import Flow, prompt_body

GOOD = prompt_body(5)
NESTED = b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BODIES: list[tuple[str, Any, int, str]] = [
    ("malformed JSON", b'{"model": "scripted", ', 400, "invalid_request"),
    ("a JSON array", b"[1, 2]", 400, "invalid_request"),
    ("a JSON string", b'"hello"', 400, "invalid_request"),
    ("nothing", b"", 400, "invalid_request"),
    ("deep nesting", NESTED, 400, "invalid_request"),
    ("NaN", b'{"model": "scripted", "prompt": "x", "max_tokens": NaN}', 400, "invalid_request"),
    ("Infinity", b'{"model": "scripted", "prompt": "x", "temperature": Infinity}', 400, "invalid_request"),
    ("1e400", b'{"model": "scripted", "prompt": "x", "max_tokens": 5, "temperature": 1e400}', 400, "validation_error"),
    ("not UTF-8", b'{"model": "\xff\xfe"}', 400, "invalid_request"),
    ("5000 digits", b'{"max_tokens": ' + b"9" * 5000 + b"}", 400, "invalid_request"),
    ("an unknown model", {**GOOD, "model": "gpt-5"}, 404, "model_not_found"),
    ("an empty model", {**GOOD, "model": ""}, 400, "validation_error"),
    ("a model that is null", {**GOOD, "model": None}, 400, "validation_error"),
    ("no model", {"prompt": "x", "max_tokens": 5}, 400, "validation_error"),
    ("max_tokens missing", {"model": "scripted", "prompt": "x"}, 400, "validation_error"),
    ("max_tokens 0", {**GOOD, "max_tokens": 0}, 400, "validation_error"),
    ("max_tokens -1", {**GOOD, "max_tokens": -1}, 400, "validation_error"),
    ("max_tokens 10^9", {**GOOD, "max_tokens": 10**9}, 400, "validation_error"),
    ("max_tokens 10^40", {**GOOD, "max_tokens": 10**40}, 400, "validation_error"),
    ("max_tokens 5.5", {**GOOD, "max_tokens": 5.5}, 400, "validation_error"),
    ('max_tokens "5"', {**GOOD, "max_tokens": "5"}, 400, "validation_error"),
    ("max_tokens true", {**GOOD, "max_tokens": True}, 400, "validation_error"),
    ("max_tokens null", {**GOOD, "max_tokens": None}, 400, "validation_error"),
    ("an empty prompt", {**GOOD, "prompt": ""}, 400, "validation_error"),
    ("a blank prompt", {**GOOD, "prompt": " \n"}, 400, "validation_error"),
    ("a prompt that is a number", {**GOOD, "prompt": 5}, 400, "validation_error"),
    ("a prompt that is a list", {**GOOD, "prompt": ["x"]}, 400, "validation_error"),
    ("a lone surrogate", b'{"model":"scripted","prompt":"\\ud800","max_tokens":5}', 400, "validation_error"),
    ("a lone surrogate as a model", b'{"model":"\\ud800","prompt":"x","max_tokens":5}', 400, "validation_error"),
    ("temperature 3", {**GOOD, "temperature": 3}, 400, "validation_error"),
    ("temperature -0.1", {**GOOD, "temperature": -0.1}, 400, "validation_error"),
    ('temperature "hot"', {**GOOD, "temperature": "hot"}, 400, "validation_error"),
    ("temperature true", {**GOOD, "temperature": True}, 400, "validation_error"),
    ("temperature 10^400", {**GOOD, "temperature": 10**400}, 400, "validation_error"),
    ('stream "yes"', {**GOOD, "stream": "yes"}, 400, "validation_error"),
    ('job_id "abc"', {**GOOD, "job_id": "abc"}, 400, "validation_error"),
    ("job_id -1", {**GOOD, "job_id": -1}, 400, "validation_error"),
    ("job_id 0", {**GOOD, "job_id": 0}, 400, "validation_error"),
    ("job_id 2^256", {**GOOD, "job_id": 2**256}, 400, "validation_error"),
    ("job_id 1.5", {**GOOD, "job_id": 1.5}, 400, "validation_error"),
    ("job_id true", {**GOOD, "job_id": True}, 400, "validation_error"),
    ("job_id in other digits", {**GOOD, "job_id": "١٦٣"}, 400, "validation_error"),
    ("session_id 2^256", {**GOOD, "session_id": str(2**256)}, 400, "validation_error"),
    ("a session_id that is a list", {**GOOD, "session_id": []}, 400, "validation_error"),
    ("a long session_id", {**GOOD, "session_id": "s" * 201}, 400, "validation_error"),
    ("a session_id with NUL", {**GOOD, "session_id": "a\x00b"}, 400, "validation_error"),
    ("a session_id with a lone surrogate", b'{"session_id":"\\ud800","model":"scripted","prompt":"x","max_tokens":5}',
     400, "validation_error"),
    ("a request_id with NUL", {**GOOD, "request_id": "a\x00b"}, 400, "validation_error"),
    ("a long request_id", {**GOOD, "request_id": "r" * 201}, 400, "validation_error"),
    ("a context that is a string", {**GOOD, "conversation_context": "hello"}, 400, "validation_error"),
    ("a turn without a role", {**GOOD, "conversation_context": [{"content": "x"}]}, 400, "validation_error"),
    ("a turn of an unknown role", {**GOOD, "conversation_context": [{"role": "tool", "content": "x"}]}, 400,
     "validation_error"),
    ("a role with a lone surrogate",
     b'{"conversation_context":[{"role":"\\ud800","content":"x"}],"model":"scripted","prompt":"x","max_tokens":5}',
     400, "validation_error"),
    ("a turn that is null", {**GOOD, "conversation_context": [None]}, 400, "validation_error"),
    ("a temperature of 400 digits", {**GOOD, "temperature": 10**400}, 400, "validation_error"),
    ("an unknown field", {**GOOD, "no_such_field": 1}, 400, "unsupported_parameter"),
    ("a penalty", {**GOOD, "presence_penalty": 0.5}, 400, "unsupported_parameter"),
    ("a seed", {**GOOD, "seed": 7}, 400, "unsupported_parameter"),
    ("an image", {**GOOD, "images": [{"data": "", "format": "png"}]}, 400, "unsupported_parameter"),
    ("an unknown way to think", {**GOOD, "thinking": "sideways"}, 400, "validation_error"),
    ("17 stop strings", {**GOOD, "stop": ["x"] * 17}, 400, "validation_error"),
    ("two jobs", {**GOOD, "job_id": 1, "jobId": 2}, 400, "validation_error"),
    ("10 MB", b'{"prompt": "' + b"x" * 10_000_000 + b'"}', 413, "payload_too_large"),
]  # fmt: skip


def test_every_bad_body_is_refused_with_its_code_and_the_server_goes_on(flow: Flow):
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(40, job_id=job_id))
    flow.engine.requests.clear()
    problems = []
    for name, body, status, code in BODIES:
        answer = flow.post(body)
        if (answer.status, answer.json.get("error_type")) != (status, code):
            problems.append(f"{name}: {answer.status} {answer.raw[:200]!r}, not {status} {code}")
        elif not answer.json["message"] or "Traceback" in answer.json["message"]:
            problems.append(f"{name}: {answer.json['message']!r}")
        elif code == "validation_error" and not answer.json["details"]["field"]:
            problems.append(f"{name}: names no field")
    assert problems == []
    assert flow.engine.requests == []
    assert flow.post(prompt_body(60, job_id=job_id)).status == 200
    assert flow.tracked(job_id) == 100
    assert InferenceRequest.objects.count() == 2


def test_an_unknown_model_is_answered_with_those_that_work(flow: Flow):
    answer = flow.post({**GOOD, "model": "gpt-5"}).json
    assert "scripted" in answer["details"]["available_models"]


def test_an_alias_is_answered_with_the_model_that_ran(flow: Flow):
    assert flow.post({**GOOD, "model": "tiny-vicuna-1b"}).json["model"] == "scripted"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_another_content_type_is_415(flow: Flow, kind: str):
    answer = flow.post(json.dumps(GOOD).encode(), kind=kind)
    assert (answer.status, answer.json["error_type"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405_and_says_which_are_allowed(flow: Flow, method: str):
    answer = flow.post(b"", method=method)
    assert (answer.status, answer.json["error_type"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_an_unknown_address_is_a_404_in_json(flow: Flow):
    answer = flow.post(GOOD, path="/v2/inference")
    assert (answer.status, answer.json["error_type"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["//v1/inference", "/v1/v1/inference", "/v1//inference"])
def test_addresses_as_clients_join_them_work(flow: Flow, path: str):
    assert flow.post(GOOD, path=path).status == 200


def test_what_clients_of_the_network_send_by_themselves_is_accepted(flow: Flow):
    """The SDK asks for a web search where a prompt says "today", whatever the host offers."""
    sent = {"web_search": True, "max_searches": 5, "search_queries": ["news"], "chain_id": 31337, "thinking": "low"}
    for fields in (sent, {"max_searches": 0, "search_queries": None, "images": [], "presence_penalty": 0}):
        answer = flow.post({**GOOD, **fields})
        assert answer.status == 200, answer.raw
        assert answer.json["web_search_performed"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_in_the_headers_is_the_job_of_the_request(flow: Flow, stream: bool):
    job_id = flow.world.open_usdc()
    assert flow.post(prompt_body(9, stream=stream), headers={"X-Fabstir-Job": f"{job_id}n"}).status == 200
    assert flow.tracked(job_id) == 9
    refused = flow.post(prompt_body(9, stream=stream, job_id=job_id + 1), headers={"X-Fabstir-Job": str(job_id)})
    assert (refused.status, refused.json["details"]["field"]) == (400, "job_id")


def test_a_stop_string_of_the_network_contract_reaches_the_engine(flow: Flow):
    flow.post({**GOOD, "stop": ["END", "\n\n"]})
    assert flow.engine.requests[-1].stop == ("END", "\n\n")
