"""Answers of other people's servers: what is shown, what is counted, and what they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jobs.inference.engine import (
    ChatMessage,
    EngineError,
    EngineUnavailable,
    GenerationRequest,
    ModelNotLoaded,
    RequestRefused,
    TextToTokenize,
    TokenChunk,
)
from jobs.inference.openai_http import OpenAIHttpEngine, Upstream
from tests.fakes.openai_server import FakeServer, Style, serving

MODEL = "org-model-1b"
STYLES: tuple[Style, ...] = ("vllm", "llama.cpp", "running", "plain")


def asked(**changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "model": MODEL,
        "messages": (ChatMessage(role="user", content="Tell me"),),
        "max_tokens": 16,
        "temperature": 0.5,
    }
    return GenerationRequest(**{**fields, **changes})


@asynccontextmanager
async def engine_of(server: FakeServer, **changes: Any) -> AsyncIterator[OpenAIHttpEngine]:
    async with serving(server) as url:
        engine = OpenAIHttpEngine(Upstream(url=url, **{"silence_seconds": 5.0, **changes}))
        try:
            yield engine
        finally:
            await engine.close()


async def answer(engine: OpenAIHttpEngine, request: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(request)]


async def failing(engine: OpenAIHttpEngine, request: GenerationRequest) -> tuple[list[TokenChunk], EngineError]:
    chunks: list[TokenChunk] = []
    with pytest.raises(EngineError) as failure:
        async for chunk in engine.generate(request):
            chunks.append(chunk)
    return chunks, failure.value


def text_of(chunks: list[TokenChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def count_of(chunks: list[TokenChunk]) -> int:
    return sum(chunk.count for chunk in chunks)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("ends", "reason"), [("stop", "stop"), ("word", "stop"), ("length", "length")])
async def test_an_answer_is_shown_and_counted_without_its_end_token(style: Style, ends: Any, reason: str) -> None:
    server = FakeServer(style=style, ends=ends)
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked())
    assert text_of(chunks) == "The quick fox"
    # A server that tells usage alone does not say that an end token is among it.
    hidden = style in ("running", "plain") and ends == "stop"
    assert count_of(chunks) == 3 + hidden
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [reason]
    assert chunks[-1].prompt_tokens == 4
    if style in ("vllm", "llama.cpp"):
        assert sum((chunk.token_ids for chunk in chunks), ()) == (11, 12, 13)


async def test_tokens_inside_a_character_are_counted_though_no_event_has_them() -> None:
    """llama.cpp sends nothing for a token that leaves a character unfinished."""
    server = FakeServer(style="llama.cpp", tokens=((11, "a"), (12, None), (13, None), (14, "日"), (15, "b")))
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked())
    assert text_of(chunks) == "a日b"
    assert count_of(chunks) == 5
    assert sum(chunk.untold for chunk in chunks) == 2


async def test_a_token_without_text_is_counted_where_it_is_not_the_end_token() -> None:
    server = FakeServer(style="llama.cpp", tokens=((11, "a"), (12, ""), (13, "b"), (14, "")), ends="length")
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked())
    assert (text_of(chunks), count_of(chunks)) == ("ab", 4)


async def test_no_more_is_counted_than_was_asked_for() -> None:
    """llama.cpp goes on past the limit until a character is complete."""
    server = FakeServer(style="llama.cpp", tokens=tuple((number, "x") for number in range(20)), ends="length")
    async with engine_of(server) as engine:
        server.events = lambda body: FakeServer.events(server, {**body, "n_predict": 9})  # type: ignore[method-assign]
        chunks = await answer(engine, asked(max_tokens=7))
    assert count_of(chunks) == 7


@pytest.mark.parametrize("style", STYLES)
async def test_a_character_is_never_split(style: Style) -> None:
    server = FakeServer(style=style, tokens=((11, "\ud83d"), (12, "\ude00"), (13, "!\ud83d")), ends="length")
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked())
    assert text_of(chunks) == "😀!\ufffd"
    assert [chunk.text.encode() for chunk in chunks]


@pytest.mark.parametrize("style", STYLES)
async def test_lines_may_end_as_http_lines_do(style: Style) -> None:
    async with engine_of(FakeServer(style=style, newline="\r\n")) as engine:
        assert text_of(await answer(engine, asked())) == "The quick fox"


@pytest.mark.parametrize("style", ["vllm", "llama.cpp"])
@pytest.mark.parametrize(
    "prompt",
    [{"messages": (), "prompt": "Once"}, {"messages": (), "prompt_ids": (5, 6)}, {}],
    ids=["text", "ids", "chat"],
)
async def test_every_form_of_prompt_is_sent(style: Style, prompt: dict[str, Any]) -> None:
    server = FakeServer(style=style)
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked(**prompt, stop=("fox",), top_k=7, top_p=0.9, repetition_penalty=1.1))
    assert count_of(chunks) == 3
    path, body = server.requests[-1]
    if style == "llama.cpp":
        assert path == "/completion"
        sent = prompt.get("prompt") or list(prompt.get("prompt_ids", ()))
        assert body["prompt"] == (sent or "<user>Tell me")
        assert (body["n_predict"], body["repeat_penalty"], body["stop"]) == (16, 1.1, ["fox"])
    else:
        assert path == ("/v1/completions" if prompt else "/v1/chat/completions")
        assert (body["max_tokens"], body["repetition_penalty"], body["stop"]) == (16, 1.1, ["fox"])
    assert (body["top_k"], body["top_p"], body["temperature"], body["min_p"]) == (7, 0.9, 0.5, 0.0)


@pytest.mark.parametrize("style", ["vllm", "llama.cpp", "plain"])
@pytest.mark.parametrize("chat", [True, False])
async def test_log_probabilities_come_one_for_each_token(style: Style, chat: bool) -> None:
    prompt: dict[str, Any] = {} if chat else {"messages": (), "prompt": "Once"}
    async with engine_of(FakeServer(style=style, ends="length")) as engine:
        chunks = await answer(engine, asked(**prompt, top_logprobs=1))
    entries = [entry for chunk in chunks for entry in chunk.probabilities]
    assert [entry.token for entry in entries] == ["The", " quick", " fox"]
    assert [entry.token_id for entry in entries] == ([-1] * 3 if style == "plain" else [11, 12, 13])
    assert all(entry.top == ((entry.token, entry.logprob),) for entry in entries)


@pytest.mark.parametrize(("option", "value"), [("top_k", 5), ("repetition_penalty", 1.2)])
async def test_an_option_that_a_server_may_not_know_is_refused_by_name(option: str, value: float) -> None:
    server = FakeServer(style="plain")
    async with engine_of(server) as engine:
        chunks, failure = await failing(engine, asked(**{option: value}))
    assert not chunks
    assert isinstance(failure, RequestRefused)
    assert option in str(failure)


@pytest.mark.parametrize(
    ("style", "way"),
    [
        ("vllm", "vllm, token ids"),
        ("llama.cpp", "llama.cpp, token ids"),
        ("running", "openai, running usage"),
        ("plain", "openai, final usage"),
    ],
)
async def test_the_probe_finds_the_best_way_of_counting(style: Style, way: str) -> None:
    server = FakeServer(style=style)
    async with engine_of(server) as engine:
        (model,) = await engine.models()
        await engine.models()
    assert model.compute_type == way
    assert (model.model, model.context_length) == (MODEL, 64)
    assert model.replicas == (3 if style == "llama.cpp" else 1)
    probes = [body for path, body in server.requests if "complet" in path]
    assert all((body.get("max_tokens") or body["n_predict"]) == 1 for body in probes)


async def test_a_server_that_tells_no_counts_is_not_used() -> None:
    async with engine_of(FakeServer(style="silent")) as engine:
        with pytest.raises(EngineUnavailable, match="cannot be billed"):
            await engine.models()


async def test_models_go_by_the_names_that_the_operator_gave() -> None:
    server = FakeServer()
    async with engine_of(server, models={"small": "org/Model-1B"}) as engine:
        assert [model.model for model in await engine.models()] == ["small"]
        await answer(engine, asked(model="small"))
        assert server.requests[-1][1]["model"] == "org/Model-1B"
        _, failure = await failing(engine, asked(model="large"))
    assert isinstance(failure, ModelNotLoaded)


async def test_a_model_that_the_server_lacks_is_named_with_those_it_has() -> None:
    async with engine_of(FakeServer(), models={"small": "org/Other"}) as engine:
        with pytest.raises(EngineUnavailable, match=r"does not serve org/Other; it serves org/Model-1B"):
            await engine.models()


@pytest.mark.parametrize("style", ["vllm", "llama.cpp"])
async def test_the_servers_tokenizer_answers(style: Style) -> None:
    async with engine_of(FakeServer(style=style)) as engine:
        assert await engine.tokenize(TextToTokenize(model=MODEL, prompt="one two")) == (100, 101)
        chat = TextToTokenize(model=MODEL, messages=(ChatMessage(role="user", content="Hi"),))
        assert await engine.tokenize(chat) == ((100,) if style == "llama.cpp" else (1, 5, 6, 7))
        assert await engine.detokenize(model=MODEL, token_ids=(8, 9)) == "8 9"


async def test_a_server_without_a_tokenizer_is_said_to_have_none() -> None:
    async with engine_of(FakeServer(style="plain", tokenizes=False)) as engine:
        with pytest.raises(RequestRefused, match="does not tokenize"):
            await engine.tokenize(TextToTokenize(model=MODEL, prompt="one two"))
