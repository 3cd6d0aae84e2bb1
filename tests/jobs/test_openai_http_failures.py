"""Servers that break off, refuse, fall silent or talk nonsense: what is billed, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any

import pytest

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    ModelNotLoaded,
    RequestRefused,
    TokenChunk,
)
from jobs.inference.openai_http import OpenAIHttpEngine, Upstream
from tests.fakes.openai_server import FakeServer, Fault, Refuse, Style, serving
from tests.jobs.test_openai_http import STYLES, answer, asked, count_of, engine_of, failing, text_of

# Of the third event on: the first of a chat is the role alone, but for llama.cpp's own.
BREAKS = ("drop", "eof", "half a line", "not json", "not an object", "error", "nonsense")


def after_two(style: Style) -> int:
    return 2 if style == "llama.cpp" else 3


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("how", BREAKS)
async def test_what_was_told_before_a_break_is_billed_and_no_more(style: Style, how: Any) -> None:
    server = FakeServer(style=style, fault=Fault(after=after_two(style), how=how))
    async with engine_of(server) as engine:
        chunks, failure = await failing(engine, asked())
    assert isinstance(failure, GenerationFailed)
    assert text_of(chunks) == "The quick"
    # The plain server told nothing; its own tokenizer finds the same two words.
    assert count_of(chunks) == 2
    assert "secret" not in str(failure)
    assert all(chunk.finish_reason is None for chunk in chunks)


@pytest.mark.parametrize("how", ["drop", "eof", "error"])
async def test_what_nobody_can_count_is_not_billed_and_said_so(how: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(style="plain", tokenizes=False, fault=Fault(after=3, how=how))
    with caplog.at_level(logging.INFO):
        async with engine_of(server) as engine:
            chunks, failure = await failing(engine, asked())
    assert isinstance(failure, GenerationFailed)
    assert (text_of(chunks), count_of(chunks)) == ("The quick", 0)
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "tokens_untold"]
    assert "9 characters" in line.getMessage()
    assert "quick" not in caplog.text
    assert "Tell me" not in caplog.text


@pytest.mark.parametrize(("tokenizes", "counted"), [(True, 3), (False, 0)])
async def test_an_answer_whose_usage_never_comes_is_complete_all_the_same(tokenizes: bool, counted: int) -> None:
    server = FakeServer(style="plain", tokenizes=tokenizes, ends="length", fault=Fault(after=99, how="no usage"))
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked())
    assert (text_of(chunks), count_of(chunks), chunks[-1].finish_reason) == ("The quick fox", counted, "length")


@pytest.mark.parametrize("style", STYLES)
async def test_a_cancel_reaches_the_server_and_bills_what_was_told(style: Style) -> None:
    server = FakeServer(style=style, fault=Fault(after=after_two(style), how="hold"))
    chunks: list[TokenChunk] = []
    async with engine_of(server) as engine:
        async with aclosing(engine.generate(asked())) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if text_of(chunks) == "The quick":
                    await engine.cancel("r1")
        await asyncio.wait_for(server.gone.wait(), 5)
        assert not (await engine.status()).models[0].running
    assert chunks[-1].finish_reason == "cancelled"
    assert count_of(chunks) == 2


@pytest.mark.parametrize("style", ["vllm", "llama.cpp"])
async def test_a_cancel_before_the_first_token_ends_the_stream(style: Style) -> None:
    server = FakeServer(style=style, fault=Fault(after=0, how="hold"))
    async with engine_of(server) as engine:
        reading = asyncio.ensure_future(answer(engine, asked()))
        await asyncio.wait_for(server.holding.wait(), 5)
        (status,) = (await engine.status()).models
        assert (status.running, status.waiting) == (0, 1)
        await engine.cancel("r1")
        (last,) = await asyncio.wait_for(reading, 5)
        await asyncio.wait_for(server.gone.wait(), 5)
    assert (last.finish_reason, last.count) == ("cancelled", 0)


async def test_what_has_arrived_before_a_cancel_is_billed_though_nobody_read_it() -> None:
    server = FakeServer(fault=Fault(after=4, how="hold"))
    async with engine_of(server) as engine, aclosing(engine.generate(asked())) as stream:
        chunks = [await anext(stream)]
        await asyncio.wait_for(server.holding.wait(), 5)
        await asyncio.sleep(0.1)
        await engine.cancel("r1")
        chunks += [chunk async for chunk in stream]
    assert (text_of(chunks), count_of(chunks)) == ("The quick fox", 3)
    assert chunks[-1].finish_reason == "cancelled"


async def test_a_reader_that_leaves_closes_the_request() -> None:
    server = FakeServer(fault=Fault(after=2, how="hold"))
    async with engine_of(server) as engine:
        async with aclosing(engine.generate(asked())) as stream:
            await anext(stream)
        await asyncio.wait_for(server.gone.wait(), 5)
        server.fault = None
        assert count_of(await answer(engine, asked())) == 3


async def test_a_cancelled_task_is_not_mistaken_for_a_cancelled_answer() -> None:
    server = FakeServer(fault=Fault(after=0, how="hold"))
    async with engine_of(server) as engine:
        reading = asyncio.ensure_future(answer(engine, asked()))
        await asyncio.wait_for(server.holding.wait(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_silence_ends_an_answer() -> None:
    server = FakeServer(fault=Fault(after=2, how="hold"))
    async with engine_of(server, silence_seconds=0.2) as engine:
        chunks, failure = await failing(engine, asked())
    assert isinstance(failure, GenerationFailed)
    assert "said nothing for 0.2 s" in str(failure)
    assert count_of(chunks) == 1


async def test_a_request_that_waits_longer_than_its_patience_is_refused_as_busy() -> None:
    server = FakeServer(fault=Fault(after=0, how="hold"))
    async with engine_of(server) as engine:
        chunks, failure = await failing(engine, asked(patience_seconds=0.2))
        assert isinstance(failure, EngineBusy)
        assert not chunks
        await asyncio.wait_for(server.gone.wait(), 5)


REFUSALS: tuple[tuple[Refuse, type[EngineError], str], ...] = (
    (Refuse(status=429, headers={"Retry-After": "7"}), EngineBusy, "busy"),
    (Refuse(status=503, headers={"Retry-After": "3"}), EngineBusy, "busy"),
    (
        Refuse(status=503, body={"error": {"code": 503, "message": "Loading", "type": "unavailable_error"}}),
        EngineUnavailable,
        "unavailable_error",
    ),
    (Refuse(status=502, body="<html>"), EngineUnavailable, "not ready"),
    (Refuse(status=401, body={"error": {"type": "authentication_error"}}), EngineUnavailable, "FABSTIR_ENGINE_API_KEY"),
    (Refuse(status=403), EngineUnavailable, "FABSTIR_ENGINE_API_KEY"),
    (Refuse(status=404, body={"error": {"type": "NotFoundError"}}), ModelNotLoaded, "org-model-1b"),
    (Refuse(status=302, headers={"Location": "http://elsewhere.example/"}), EngineUnavailable, "redirects"),
    (
        Refuse(status=400, body={"error": {"message": "secret words", "type": "BadRequestError", "param": "top_k"}}),
        RequestRefused,
        "BadRequestError, top_k",
    ),
    (Refuse(status=422, body={"detail": [{"msg": "secret words"}]}), RequestRefused, "HTTP 422"),
    (Refuse(status=500, body="secret words"), GenerationFailed, "HTTP 500"),
    (Refuse(status=200, body="{}", headers={"Content-Type": "application/json"}), GenerationFailed, "application/json"),
)


@pytest.mark.parametrize(("refuse", "kind", "says"), REFUSALS)
async def test_each_refusal_has_its_meaning(refuse: Refuse, kind: type[EngineError], says: str) -> None:
    server = FakeServer(fault=refuse)
    async with engine_of(server) as engine:
        chunks, failure = await failing(engine, asked())
    assert not chunks
    assert type(failure) is kind
    assert says in str(failure)
    assert "secret" not in str(failure)
    assert "elsewhere" not in str(failure)
    if isinstance(failure, EngineBusy):
        assert failure.retry_after == int(refuse.headers["Retry-After"])


LLAMA = {
    "code": 400,
    "message": "request (70 tokens) exceeds the available context size (64 tokens), try increasing it",
}
LLAMA |= {"type": "exceed_context_size_error", "n_prompt_tokens": 70, "n_ctx": 64}
VLLM = (
    "This model's maximum context length is 64 tokens. However, you requested 16 output tokens and your prompt contains"
    " at least {} input tokens, for a total of at least 86 tokens."
)


@pytest.mark.parametrize(
    ("style", "error", "prompt_tokens"),
    [
        ("llama.cpp", LLAMA, 70),
        ("running", {"message": VLLM.format(70), "type": "BadRequestError", "param": "input_tokens", "code": 400}, 70),
        ("running", {"message": "too long", "code": "context_length_exceeded"}, 64),
    ],
)
async def test_a_prompt_beyond_the_context_is_refused_with_its_length(
    style: Style, error: dict[str, Any], prompt_tokens: int
) -> None:
    server = FakeServer(style=style, tokenizes=False, fault=Refuse(status=400, body={"error": error}))
    async with engine_of(server) as engine:
        chunks, failure = await failing(engine, asked())
    assert not chunks
    assert isinstance(failure, ContextLengthExceeded)
    assert (failure.prompt_tokens, failure.context_length) == (prompt_tokens, 64)


async def test_a_prompt_that_fits_gets_the_room_that_is_left() -> None:
    """vLLM refuses a request whose limit exceeds the context; this host's engines stop there instead."""
    error = {"message": VLLM.format(4), "type": "BadRequestError"}
    server = FakeServer(fault=Refuse(status=400, above=60, body={"error": error}))
    async with engine_of(server) as engine:
        chunks = await answer(engine, asked(max_tokens=100))
    assert text_of(chunks) == "The quick fox"
    assert [body["max_tokens"] for path, body in server.requests if "complet" in path] == [1, 100, 60]


async def test_a_server_that_is_not_there_is_unavailable_and_found_again_when_it_comes_back() -> None:
    server = FakeServer()
    async with serving(server) as url:
        port = url.rsplit(":", 1)[1]
    engine = OpenAIHttpEngine(Upstream(url=f"http://user:hunter2@127.0.0.1:{port}"))
    _, failure = await failing(engine, asked())
    assert isinstance(failure, EngineUnavailable)
    assert str(failure) == "The inference server cannot be reached (Connection refused)."
    assert "hunter2" not in str(failure) + repr(engine.__dict__)
    with pytest.raises(EngineUnavailable):
        await engine.models()
    await engine.close()


@pytest.mark.parametrize(("key", "works"), [("k-123456", True), ("wrong-key", False), (None, False)])
async def test_the_key_is_sent_and_shown_to_nobody(
    key: str | None, works: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(api_key="k-123456")
    with caplog.at_level(logging.DEBUG):
        async with engine_of(server, api_key=key) as engine:
            if works:
                assert text_of(await answer(engine, asked())) == "The quick fox"
                assert server.headers[-1]["Authorization"] == "Bearer k-123456"
                # A kept connection may be closed by the server under the next request.
                assert {sent["Connection"] for sent in server.headers} == {"close"}
            else:
                _, failure = await failing(engine, asked())
                assert "FABSTIR_ENGINE_API_KEY" in str(failure)
                assert str(key) not in str(failure)
    assert "k-123456" not in caplog.text
    assert "wrong-key" not in caplog.text


async def test_name_and_password_of_the_address_are_sent_as_such() -> None:
    server = FakeServer()
    async with serving(server) as url:
        engine = OpenAIHttpEngine(Upstream(url=url.replace("//", "//me:p%40ss@") + "/v1/"))
        await engine.models()
        await engine.close()
    assert server.headers[-1]["Authorization"] == "Basic bWU6cEBzcw=="


async def test_more_requests_than_the_server_is_given_at_once_are_busy() -> None:
    server = FakeServer(fault=Fault(after=0, how="hold"))
    async with engine_of(server, in_flight=1) as engine:
        reading = asyncio.ensure_future(answer(engine, asked()))
        await asyncio.wait_for(server.holding.wait(), 5)
        assert isinstance(engine.busy(), EngineBusy)
        _, busy = await failing(engine, asked(request_id="r2"))
        assert isinstance(busy, EngineBusy)
        await engine.cancel("r1")
        await reading
        assert engine.busy() is None
        assert (await engine.status()).models[0].refused == 1


async def test_two_requests_of_one_id_are_refused() -> None:
    server = FakeServer(fault=Fault(after=0, how="hold"))
    async with engine_of(server) as engine:
        reading = asyncio.ensure_future(answer(engine, asked()))
        await asyncio.wait_for(server.holding.wait(), 5)
        _, failure = await failing(engine, asked())
        assert isinstance(failure, RequestRefused)
        await engine.cancel("r1")
        await reading
