"""Wire shapes of the OpenAI API, and the table of what it may ask of this host."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.callers import ANYBODY
from jobs.inference.engine import TokenProbability
from jobs.openai.chat import chat_demand, messages_of
from jobs.openai.errors import error_object, speaks_openai
from jobs.openai.logprobs import chat_logprobs, completion_logprobs
from jobs.openai.parameters import NEUTRAL_IN_CHAT, Demand
from jobs.openai.text import text_demand
from jobs.protocol import RequestError, SessionReference
from jobs.request_ids import accepted

PROBABILITIES = (
    TokenProbability(token_id=1, token="Zü", logprob=-0.5, top=(("Zü", -0.5), ("no", float("-inf")))),
    TokenProbability(token_id=2, token="\ufffd", logprob=-1.0),
)

# To Python, false is 0 and 1 is true; to JSON they are not.
LOOK_ALIKES: dict[str, Any] = {
    "presence_penalty": False,
    "frequency_penalty": False,
    "min_p": False,
    "store": 0,
    "parallel_tool_calls": 1,
}


def chat(**fields: Any) -> Demand:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return chat_demand(body, reference=SessionReference(), caller=ANYBODY, request_id="r", most_tokens=100)


def text(**fields: Any) -> Demand:
    body = {"model": "m", "prompt": "x", **fields}
    return text_demand(body, reference=SessionReference(), caller=ANYBODY, request_id="r", most_tokens=100)


def test_part_of_a_character_has_no_bytes_and_what_is_impossible_is_a_number() -> None:
    first, second = chat_logprobs(PROBABILITIES)["content"]
    assert first["bytes"] == [90, 195, 188]
    assert first["top_logprobs"][1] == {"token": "no", "logprob": -9999.0, "bytes": [110, 111]}
    assert second["bytes"] is None
    found = completion_logprobs(PROBABILITIES, offset=10)
    assert found["text_offset"] == [10, 12]
    assert found["top_logprobs"] == [{"Zü": -0.5, "no": -9999.0}, {}]


@pytest.mark.parametrize(
    ("status", "code", "kind", "wire_code"),
    [
        (400, "validation_error", "invalid_request_error", "invalid_value"),
        (400, "TOKEN_LIMIT_EXCEEDED", "invalid_request_error", "context_length_exceeded"),
        (401, "invalid_api_key", "authentication_error", "invalid_api_key"),
        (402, "payment_required", "insufficient_quota", "payment_required"),
        (403, "job_not_assigned", "permission_error", "job_not_assigned"),
        (404, "model_not_found", "invalid_request_error", "model_not_found"),
        (409, "job_ended", "invalid_request_error", "job_ended"),
        (429, "rate_limit_exceeded", "rate_limit_error", "rate_limit_exceeded"),
        (503, "service_unavailable", "server_error", "service_unavailable"),
        (504, "timeout", "server_error", "timeout"),
    ],
)
def test_a_refusal_has_the_type_that_clients_look_for(status: int, code: str, kind: str, wire_code: str) -> None:
    refusal = RequestError(code=code, message="No.", status=status, details={"field": "x", "more": 1})
    assert error_object(refusal) == {
        "error": {"message": "No.", "type": kind, "param": "x", "code": wire_code, "details": {"more": 1}}
    }


def test_only_its_own_addresses_speak_openai() -> None:
    assert all(map(speaks_openai, ("/v1/chat/completions", "/v1/models", "/v1/models/x", "/tokenize")))
    assert not any(map(speaks_openai, ("/v1/inference", "/v1/modelsx", "/tokenizer", "/admin/", "/v1/usage")))


@pytest.mark.parametrize("name", NEUTRAL_IN_CHAT)
def test_neutral_values_are_accepted_and_their_look_alikes_are_not(name: str) -> None:
    assert chat(**{name: None})
    for value in NEUTRAL_IN_CHAT[name]:
        assert chat(**{name: value})
    with pytest.raises(RequestError) as refused:
        chat(**{name: LOOK_ALIKES.get(name, "other")})
    assert (refused.value.code, refused.value.details["field"]) == ("unsupported_parameter", name)


def test_null_is_the_same_as_leaving_a_parameter_out() -> None:
    named = ("temperature", "top_p", "n", "stop", "stream", "max_tokens", "logprobs", "user", "stream_options")
    assert chat(**dict.fromkeys(named)) == chat()


def test_limits_have_one_name_and_a_default() -> None:
    assert chat().requests[0].max_tokens == 100
    assert text().requests[0].max_tokens == 16
    assert chat(max_completion_tokens=7).requests[0].max_tokens == 7
    assert chat(max_tokens=90).within(50).requests[0].max_tokens == 50
    with pytest.raises(RequestError):
        chat(max_tokens=7, max_completion_tokens=7)


def test_each_prompt_is_a_request_of_its_own() -> None:
    assert [each.prompt for each in text(prompt=["a", "b"]).requests] == ["a", "b"]
    assert [each.prompt_ids for each in text(prompt=[[1, 2], [3]]).requests] == [(1, 2), (3,)]
    assert len(text(n=3).requests) == 3
    for prompt in ("", [], [""], [[]], ["a", 5], [1, "a"], [True], [-1], [2**31], {}, 5, None, ["x"] * 9):
        with pytest.raises(RequestError):
            text(prompt=prompt)
    with pytest.raises(RequestError):
        text(prompt=["a", "b"], n=2)


def test_a_part_of_a_message_is_refused_by_its_place() -> None:
    with pytest.raises(RequestError) as refused:
        messages_of([{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "input_audio"}]}])
    assert refused.value.details["field"] == "messages[1].content[0].type"


@pytest.mark.parametrize("sent", ["", " ", "a b", "a\r\nb", "x" * 129, "é", "<b>", None])
def test_an_id_that_could_break_a_line_is_replaced(sent: str | None) -> None:
    assert accepted(sent) != sent
    assert len(accepted(sent)) == 36


@pytest.mark.parametrize("sent", ["a", "req_123", "2026-11-22T07:00:00.000Z", "x" * 128])
def test_an_id_that_is_plain_is_kept(sent: str) -> None:
    assert accepted(sent) == sent
