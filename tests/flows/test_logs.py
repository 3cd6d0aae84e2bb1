"""What a request leaves in the log: its ids on every line, and nothing of what was said."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from fabstir_site.logs import JsonFormatter
from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    RequestRefused,
    TokenChunk,
)
from jobs.inference.scripted import ScriptedEngine, ScriptedReply, reply_of
from jobs.models import Session
from tests.flows.flow import PATHS, Flow, prompt_body

ASKED, ANSWERED = "heliotrope-asked", "heliotrope-answered"
logger = logging.getLogger("tests.flows.engine")


@pytest.fixture
def log(flow: Flow) -> Iterator[io.StringIO]:
    """All that the node would write as JSON lines, at its usual level."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


class TalkativeEngine(ScriptedEngine):
    """Logs a line before its first chunk and before its last."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        logger.warning("generates")
        async for chunk in super().generate(request):
            if chunk.finish_reason is not None:
                logger.warning("has generated")
            yield chunk


class BrokenEngine(ScriptedEngine):
    """Fails in a way that nobody foresaw, with the prompt in its hands."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        yield TokenChunk(sequence=0, token_ids=(1,), text=ANSWERED, prompt_tokens=1)
        raise RuntimeError(f"cannot go on after {len(request.messages)} messages")


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.mark.parametrize("path", PATHS)
def test_lines_of_a_request_name_its_session_and_job(flow: Flow, log: io.StringIO, path: str) -> None:
    job = flow.world.open_usdc()
    flow.use(TalkativeEngine(reply_of("abc"), model="scripted"))
    flow.ask(path, tokens=5, job_id=job)
    flow.run(flow.settled())
    own = [line for line in lines(log) if line["logger"] == logger.name]
    assert [line["message"] for line in own] == ["generates", "has generated"]
    row = Session.objects.get()
    assert {(line["session_id"], line["job_id"]) for line in own} == {(row.pk, str(job))}


def test_lines_of_a_request_have_the_id_that_its_client_sent(flow: Flow, log: io.StringIO) -> None:
    flow.use(TalkativeEngine(reply_of("abc"), model="scripted"))
    flow.post(prompt_body(5), headers={"X-Request-Id": "mine-7"})
    flow.post(prompt_body(5))
    flow.run(flow.settled())
    ids = [line["request_id"] for line in lines(log) if line["logger"] == logger.name]
    assert ids[:2] == ["mine-7", "mine-7"]
    assert ids[2] == ids[3] != "mine-7"


FAILURES: tuple[EngineError, ...] = (
    GenerationFailed("out of memory"),
    EngineUnavailable("gone"),
    RequestRefused("temperature"),
    ContextLengthExceeded(prompt_tokens=9, context_length=8),
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_that_was_said_is_in_the_log(flow: Flow, log: io.StringIO, path: str) -> None:
    said = reply_of(ANSWERED)
    engines: list[ScriptedEngine] = [ScriptedEngine(said, model="scripted")]
    for failure in FAILURES:
        for tokens in (said.tokens, ()):
            engines.append(ScriptedEngine(ScriptedReply(tokens=tokens, error=failure), model="scripted"))
    engines.append(BrokenEngine(said, model="scripted"))
    for engine in engines:
        flow.use(engine)
        flow.ask(path, tokens=50, prompt=ASKED)
        flow.run(flow.settled())
    assert "cannot go on after" in log.getvalue()
    assert "heliotrope" not in log.getvalue()


BAD: tuple[dict[str, Any], ...] = (
    {"prompt": ASKED, "model": "absent"},
    {"prompt": [ASKED]},
    {"prompt": {"text": ASKED}},
    {"prompt": ASKED, "max_tokens": -1},
    {"prompt": ASKED, "max_tokens": 10**9},
    {"prompt": ASKED, "temperature": ASKED},
    {"prompt": ASKED, "job_id": ASKED},
    {"prompt": ASKED, "job_id": 999_999},
    {"messages": ASKED},
    {"messages": [{"role": ASKED, "content": ASKED}]},
)


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/chat/completions", "/v1/completions"])
def test_refused_requests_are_not_quoted_in_the_log(flow: Flow, log: io.StringIO, path: str) -> None:
    # Not every path minds every one of them.
    statuses = [flow.post({"model": "scripted", "max_tokens": 5, **body}, path=path).status for body in BAD]
    flow.run(flow.settled())
    assert sum(status >= 400 for status in statuses) >= 7
    assert flow.post(f'{{"prompt": "{ASKED}"'.encode(), path=path).status == 400
    assert flow.post(f"prompt={ASKED}".encode(), path=path, kind="application/x-www-form-urlencoded").status >= 400
    assert "heliotrope" not in log.getvalue()
