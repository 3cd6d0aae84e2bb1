"""The node with an inference server elsewhere: what that server tells is what the ledger holds."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest

from jobs.inference.openai_http import OpenAIHttpEngine, Upstream
from jobs.models import InferenceRequest, Session
from tests.fakes.openai_server import FakeServer, Fault, Refuse, Style, serving
from tests.flows.flow import PATHS, Flow

STYLES: tuple[Style, ...] = ("vllm", "llama.cpp", "running", "plain")
# Six tokens, two of them inside a character.
TOKENS = ((11, "a"), (12, None), (13, None), (14, "日"), (15, " b"), (16, " c"))


def ask(flow: Flow, server: FakeServer, path: str = "http_json", *, tokens: int = 10) -> dict[str, Any]:
    async def play() -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(serving(server))
            engine = OpenAIHttpEngine(Upstream(url=url, models={"scripted": server.model}))
            stack.push_async_callback(engine.close)
            flow.use(engine)
            answer = await flow.prompt(path, tokens=tokens)
            await flow.settled()
            return answer

    return flow.run(play())


def ledger() -> tuple[int, int]:
    request = InferenceRequest.objects.get()
    # A socket opens a session before it prompts.
    assert sum(session.tokens_tracked for session in Session.objects.all()) == request.completion_tokens
    return request.prompt_tokens, request.completion_tokens


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("style", STYLES)
def test_every_server_is_billed_by_what_it_tells_on_every_path(flow: Flow, style: Style, path: str) -> None:
    answer = ask(flow, FakeServer(style=style, tokens=TOKENS, ends="length"), path)
    assert ledger() == (4, 6)
    assert "a日 b c" in str(answer) or path != "http_json"


@pytest.mark.parametrize(
    ("style", "tokenizes", "billed"),
    [("vllm", True, 4), ("llama.cpp", True, 4), ("plain", True, 1), ("plain", False, 0)],
)
def test_an_answer_that_breaks_off_is_billed_by_what_was_told(
    flow: Flow, style: Style, tokenizes: bool, billed: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Behind "日": the fifth event of a chat, the second of llama.cpp's own.
    fault = Fault(after=2 if style == "llama.cpp" else 5, how="drop")
    with caplog.at_level(logging.DEBUG):
        answer = ask(flow, FakeServer(style=style, tokens=TOKENS, tokenizes=tokenizes, fault=fault))
    assert ledger()[1] == billed
    assert "broke off" in str(answer)
    assert "日" not in caplog.text
    assert "Count." not in caplog.text


def test_a_refusal_costs_nothing(flow: Flow) -> None:
    answer = ask(flow, FakeServer(fault=Refuse(status=429, headers={"Retry-After": "9"})))
    assert "All slots of this host are taken" in str(answer)
    assert ledger() == (0, 0)
