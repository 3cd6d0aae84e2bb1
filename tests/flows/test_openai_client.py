"""The real ``openai`` client against the real node: a web process, its engine process, sockets in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from settlement.chain import local
from tests.flows.node import Node, drop_node, make_node, wait_for

TEXT = "Zürich → 東京 👩‍👩‍👧 𝄞. "
CONTEXT = 2048


@pytest.fixture(scope="module")
def node(anvil_binary: Path) -> Iterator[Node]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        node = make_node(anvil.url, text=TEXT, replicas=4, context_length=CONTEXT)
        node.start("web")
        yield node
        drop_node(node)


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.address("/v1"), api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, content: str = "Hello", **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="scripted", messages=messages, **{"max_tokens": 20, **fields})


def text_of(tokens: int) -> str:
    """What the script says in ``tokens`` tokens, each of them a byte; a cut character is replaced."""
    data = TEXT.encode()
    return bytes(data[number % len(data)] for number in range(tokens)).decode(errors="replace")


def test_a_chat_is_answered_whole(client: openai.OpenAI, node: Node) -> None:
    answer = chat(client, max_tokens=18)
    assert answer.choices[0].message.content == text_of(18)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 18, 23)
    assert answer.object == "chat.completion"
    assert answer.model == "scripted"
    assert re.fullmatch(r"fp_[0-9a-f]{12}", answer.system_fingerprint)
    # The id of an answer is that of its row in the ledger.
    row = answer.id.removeprefix("chatcmpl-")
    rows = node.rows("SELECT cast(id as varchar), completion_tokens, path FROM jobs_inferencerequest")
    assert [rest for found, *rest in rows if found.replace("-", "") == row] == [[18, "openai_json"]]
    assert answer.model_extra["billing"]["claimable"] is False
    timings = answer.model_extra["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (5, 18)
    assert timings["prompt_ms"] >= 0


def test_every_way_to_write_a_conversation_reaches_the_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[
            {"role": "developer", "content": "aa"},
            {"role": "user", "content": [{"type": "text", "text": "bbb"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": "", "tool_calls": [], "refusal": None},
            {"role": "user", "content": "dddd"},
        ],
        max_completion_tokens=1,
    )
    assert answer.usage.prompt_tokens == 10


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    chunks = list(chat(client, max_tokens=200, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text_of(200)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (5, 200)


def test_a_stream_without_options_has_its_usage_in_the_last_chunk(client: openai.OpenAI) -> None:
    *others, last = list(chat(client, stream=True))
    assert last.usage.completion_tokens == 20
    assert all(chunk.usage is None for chunk in others)
    assert last.model_extra["timings"]["predicted_n"] == 20


def test_several_choices_are_each_generated_and_counted(client: openai.OpenAI, node: Node) -> None:
    before = counted(node)
    answer = chat(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [text_of(20)] * 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 60)
    wait_for(lambda: counted(node) == before + 60, "the books of three choices")
    texts = {0: "", 1: ""}
    for chunk in chat(client, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: text_of(20), 1: text_of(20)}


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=100, stop=["京", "never"])
    assert answer.choices[0].message.content == "Zürich → 東"
    assert answer.choices[0].finish_reason == "stop"
    # What completed the stop string was generated, and counts.
    assert answer.usage.completion_tokens == len("Zürich → 東京".encode())
    streamed = list(chat(client, max_tokens=100, stop=" 👩", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Zürich → 東京"
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_come_with_every_token(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 6
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) <= 2 for entry in content)
    streamed = chat(client, logprobs=True, top_logprobs=2, max_tokens=6, stream=True)
    entries = [e for chunk in streamed for c in chunk.choices if c.logprobs for e in c.logprobs.content]
    assert entries == content
    whole = client.completions.create(model="scripted", prompt="Hello", max_tokens=6, logprobs=2)
    found = whole.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 6
    assert found.text_offset[0] == 0
    assert chat(client).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("Hello", 5), ([1, 2, 3], 3), (["a", "bb", "ccc"], 6), ([[1, 2], [3]], 3), (" ", 1)]
)
def test_a_text_is_completed_as_it_is(client: openai.OpenAI, prompt: Any, tokens: int) -> None:
    answer = client.completions.create(model="scripted", prompt=prompt)
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert [choice.text for choice in answer.choices] == [text_of(16)] * (len(prompt) if several else 1)
    assert answer.usage.prompt_tokens == tokens
    assert answer.object == "text_completion"
    streamed = list(client.completions.create(model="scripted", prompt=prompt, stream=True))
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices if choice.index == 0) == text_of(16)
    assert streamed[-1].usage.prompt_tokens == tokens


def test_models_are_found_by_every_name(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["scripted"]
    assert client.models.retrieve("default").id == "scripted"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-5")
    assert refused.value.code == "model_not_found"


def test_token_ids_are_those_of_a_prompt(node: Node) -> None:
    found = requests.post(node.address("/tokenize"), json={"model": "default", "prompt": "Zü"}, timeout=30).json()
    assert found == {"model": "scripted", "count": 3, "max_model_len": CONTEXT, "tokens": list("Zü".encode())}
    messages = [{"role": "user", "content": "Hello"}]
    chatted = requests.post(node.address("/tokenize"), json={"model": "default", "messages": messages}, timeout=30)
    assert chatted.json()["count"] == 5
    text = requests.post(node.address("/detokenize"), json={"model": "default", "tokens": found["tokens"]}, timeout=30)
    assert text.json() == {"model": "scripted", "prompt": "Zü"}


def test_the_id_of_a_request_goes_round(client: openai.OpenAI, node: Node) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="scripted",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=1,
        extra_headers={"X-Request-Id": "trace-42"},
    )
    assert raw.headers["x-request-id"] == "trace-42"
    assert node.rows("SELECT count(*) FROM jobs_inferencerequest WHERE client_request_id = 'trace-42'") == [(1,)]
    for sent in ("a b", "x" * 200, "<script>", ""):
        made = requests.get(node.address("/v1/models"), headers={"X-Request-Id": sent}, timeout=30)
        assert re.fullmatch(r"[0-9a-f-]{36}", made.headers["X-Request-Id"])
    assert re.fullmatch(r"[0-9a-f-]{36}", requests.get(node.address("/nowhere"), timeout=30).headers["X-Request-Id"])


def counted(node: Node) -> int:
    """Tokens in the ledger, checked against the requests that they belong to."""
    [(used,)] = node.rows("SELECT coalesce(sum(count), 0) FROM jobs_tokenusage")
    return int(used)
