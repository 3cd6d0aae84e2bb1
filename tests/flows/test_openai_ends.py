"""How answers of the OpenAI API end that do not end well: refused, dropped, cut off, kept waiting, failed."""

from __future__ import annotations

import json
import socket as sockets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from settlement.chain import local
from tests.flows.node import Node, drop_node, make_node, wait_for

HELD = 40
QUEUED = 2


@pytest.fixture(scope="module")
def node(anvil_binary: Path) -> Iterator[Node]:
    """Its one slot is held by any answer of more than ``HELD`` tokens until that is cancelled."""
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        node = make_node(anvil.url, text="abcdefghij", hold_after=HELD, batch_rows=1)
        node.engine.kill()
        start_engine(node)
        node.start("web")
        yield node
        drop_node(node)


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.address("/v1"), api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "Hello"}]
    return client.chat.completions.create(**{"model": "scripted", "messages": messages, "max_tokens": 9, **fields})


UNSUPPORTED: dict[str, Any] = {
    "presence_penalty": 0.5,
    "frequency_penalty": -1,
    "logit_bias": {"5": 1},
    "seed": 7,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "mp3"},
    "min_p": 0.1,
    "store": True,
    "web_search_options": {},
    "reasoning_effort": "high",
    "no_such_parameter": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_be_ignored_is_refused_by_its_name(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body={name: UNSUPPORTED[name]})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", name)
    assert refused.value.type == "invalid_request_error"
    assert name in refused.value.message


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    neutral = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "seed": None,
        "tools": [],
        "response_format": {"type": "text"},
        "min_p": 0,
        "user": "somebody",
        "n": None,
    }
    assert chat(client, extra_body=neutral).usage.completion_tokens == 9


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": 3}, "temperature"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"job_id": "x"}}, "job_id"),
    ],
)
def test_a_bad_value_is_refused_by_its_place(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **fields)
    assert refused.value.param == param
    assert refused.value.code in ("invalid_value", "unsupported_parameter")


def test_every_refusal_is_the_exception_that_the_client_has_for_it(client: openai.OpenAI, node: Node) -> None:
    world = node.world.world
    ended, foreign = world.open_usdc(), world.open_usdc(host=world.w3.eth.accounts[2])
    world.send(world.complete(ended), sender=world.user)
    long = [{"role": "user", "content": "x" * 3000}]
    refusals: list[tuple[type[openai.APIStatusError], int, str, dict[str, Any]]] = [
        (openai.BadRequestError, 400, "context_length_exceeded", {"messages": long}),
        (openai.AuthenticationError, 401, "invalid_api_key", {"extra_headers": {"Authorization": "Bearer fab_x"}}),
        (openai.PermissionDeniedError, 403, "job_not_assigned", {"extra_body": {"job_id": foreign}}),
        (openai.PermissionDeniedError, 403, "job_not_assigned", {"extra_headers": {"X-Fabstir-Job": f"{foreign}n"}}),
        (openai.NotFoundError, 404, "model_not_found", {"model": "gpt-5"}),
        (openai.ConflictError, 409, "job_ended", {"extra_body": {"sessionId": f"{ended}n"}}),
        (openai.APIStatusError, 413, "payload_too_large", {"messages": [{"role": "user", "content": "x" * 2**21}]}),
    ]
    for kind, status, code, fields in refusals:
        for stream in (False, True):
            with pytest.raises(kind) as refused:
                chat(client, stream=stream, **fields)
            assert (refused.value.status_code, refused.value.code) == (status, code)
            assert refused.value.message
    # A client that tries again by itself must know that this will not change.
    assert chatted_with(node, job_id=ended).headers["X-Should-Retry"] == "false"


def test_a_job_is_billed_as_on_every_other_path(client: openai.OpenAI, node: Node) -> None:
    job_id = node.world.world.open_eth(deposit=10**14, price=10**12)
    answers = [
        chat(client, max_tokens=30, extra_body={"job_id": job_id}),
        chat(client, max_tokens=30, n=2, extra_headers={"X-Fabstir-Job": str(job_id)}),
    ]
    assert [answer.usage.completion_tokens for answer in answers] == [30, 60]
    assert answers[0].model_extra["billing"] == {
        "job_id": str(job_id),
        "claimable": True,
        "reason": "job",
        "message": f"Counted for job {job_id}; claimed from its deposit in checkpoints.",
    }
    cut = chat(client, max_tokens=30, extra_body={"jobId": job_id})
    # The deposit ended it: OpenAI's word for "not all of it", and the truth beside it.
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].model_extra["finish_detail"] == "budget"
    assert cut.usage.completion_tokens == 10
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client, extra_body={"job_id": job_id})
    assert (refused.value.status_code, refused.value.code) == (402, "deposit_exhausted")
    assert node.rows("SELECT tokens_tracked FROM jobs_session WHERE job_id IS NOT NULL") == [(100,)]


def test_a_client_that_drops_frees_the_slot_at_once(client: openai.OpenAI, node: Node) -> None:
    for stream in (False, True):
        held = hold(node, stream=stream)
        wait_for(lambda: node.running() == 1, "the slot to be taken")
        held.close()
        wait_for(lambda: node.running() == 0, "the end of what nobody reads")
        assert chat(client).usage.completion_tokens == 9
    billed = "SELECT DISTINCT completion_tokens FROM jobs_inferencerequest WHERE state = 'cancelled'"
    assert node.rows(f"{billed} AND completion_tokens > 0") == [(HELD,)]


def test_waiting_clients_hear_that_they_wait_and_a_full_queue_says_so(client: openai.OpenAI, node: Node) -> None:
    holding = hold(node, stream=True)
    wait_for(lambda: node.running() == 1, "the slot to be taken")
    waiting = [hold(node, stream=stream) for stream in (True, False)]
    wait_for(lambda: node.running() == 1 + QUEUED, "the queue to be full")
    with pytest.raises(openai.InternalServerError) as refused:
        chat(client)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) > 0
    # One that goes away while it waits never runs.
    waiting[1].close()
    wait_for(lambda: node.running() == QUEUED, "the end of one that waited")
    newest = "SELECT state, completion_tokens FROM jobs_inferencerequest WHERE state <> 'running'"
    assert node.rows(f"{newest} ORDER BY finished_at DESC LIMIT 1") == [("cancelled", 0)]
    heard = b""
    while b": ping" not in heard:
        piece = waiting[0].recv(65536)
        assert piece, heard
        heard += piece
    assert b"200 OK" in heard
    assert b"data:" not in heard
    waiting[0].close()
    holding.close()
    wait_for(lambda: node.running() == 0, "the end of all")


def test_an_engine_that_dies_in_a_stream_is_an_error_event_with_the_usage(client: openai.OpenAI, node: Node) -> None:
    stream = chat(client, max_tokens=500, stream=True)
    heard = ""
    with pytest.raises(openai.APIError) as failed:
        for chunk in stream:
            heard += chunk.choices[0].delta.content or ""
            if len(heard) == HELD:
                node.engine.kill()
    assert failed.value.type == "server_error"
    assert failed.value.body["details"]["usage"]["completion_tokens"] == HELD  # type: ignore[index]
    with pytest.raises(openai.InternalServerError) as refused:
        chat(client)
    assert refused.value.status_code == 503
    start_engine(node)
    assert chat(client).usage.completion_tokens == 9


def start_engine(node: Node) -> None:
    node.engine.start({"id": "scripted", "scripted": node.script}, queue_size=QUEUED)


def hold(node: Node, *, stream: bool) -> sockets.socket:
    """A request that takes the slot, on a connection that the test holds."""
    messages = [{"role": "user", "content": "Hello"}]
    raw = json.dumps({"model": "scripted", "messages": messages, "max_tokens": 500, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = sockets.create_connection(("127.0.0.1", node.port), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return connection


def chatted_with(node: Node, **fields: Any) -> requests.Response:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return requests.post(node.address("/v1/chat/completions"), json=body, timeout=60)
