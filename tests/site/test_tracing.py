"""Traces: only where they are asked for and installed, and with the attributes that collectors know."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest

from fabstir_site import observing, tracing
from jobs import log_ids
from jobs.inference.engine import TokenChunk
from jobs.observation import ObservedRequest, Onlookers

REQUEST = ObservedRequest(
    id="row-1", model="smollm2", asked="default", path="http", max_tokens=50, temperature=0.5, operation="chat"
)
installed = pytest.mark.skipif(not tracing.INSTALLED, reason="requirements-tracing.txt is not installed")


def test_nobody_traces_unless_the_environment_asks() -> None:
    assert tracing.make_tracing(endpoint=None) is None
    # Nothing follows the tokens but the figures.
    watch = observing.OBSERVER.request(REQUEST)
    assert type(watch).__name__ == "RequestFigures"
    watch.ended("stop", prompt_tokens=0, completion_tokens=0, error_code="")


def test_what_is_asked_for_and_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "INSTALLED", False)
    with caplog.at_level(logging.WARNING):
        assert tracing.make_tracing(endpoint="http://127.0.0.1:4318") is None
    assert "requirements-tracing.txt" in caplog.text


def test_several_onlookers_are_told_the_same() -> None:
    told: list[tuple[str, Any]] = []

    class Onlooker:
        def request(self, request: ObservedRequest) -> Onlooker:
            told.append(("request", request))
            return self

        def refused(self, code: str) -> None:
            told.append(("refused", code))

        def sockets(self, count: int) -> None:
            told.append(("sockets", count))

        def chunk(self, chunk: TokenChunk) -> None:
            told.append(("chunk", chunk.count))

        def ended(self, finish_reason: str, **counts: Any) -> None:
            told.append(("ended", (finish_reason, counts["completion_tokens"])))

    both = Onlookers(Onlooker(), Onlooker())
    both.refused("model_not_found")
    both.sockets(3)
    watch = both.request(REQUEST)
    watch.chunk(TokenChunk(sequence=0, token_ids=(1,), untold=2, text="a", prompt_tokens=4))
    watch.ended("stop", prompt_tokens=4, completion_tokens=3, error_code="")
    expected = [
        ("refused", "model_not_found"),
        ("sockets", 3),
        ("request", REQUEST),
        ("chunk", 3),
        ("ended", ("stop", 3)),
    ]
    assert told == [one for one in expected for _ in range(2)]


@installed
def test_a_span_tells_what_was_asked_and_what_it_cost() -> None:
    exporter, seen = _in_memory()
    log_ids.work_for(session=7, job=12)
    watch = seen.request(REQUEST)
    watch.chunk(TokenChunk(sequence=0, token_ids=(1, 2), text="secret words", prompt_tokens=4, queued_seconds=0.25))
    watch.chunk(TokenChunk(sequence=1, token_ids=(3,), text="more", prompt_tokens=4))
    watch.ended("length", prompt_tokens=4, completion_tokens=3, error_code="")
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat smollm2"
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fabstir",
        "gen_ai.request.model": "default",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "smollm2",
        "gen_ai.response.id": "row-1",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 3,
        "fabstir.path": "http",
        "fabstir.queued_seconds": 0.25,
        "fabstir.session_id": 7,
        "fabstir.job_id": "12",
    }
    assert log_ids.known()["trace_id"] == f"{span.context.trace_id:032x}"
    assert "secret" not in span.to_json()


@installed
def test_a_span_of_a_failure_says_which() -> None:
    exporter, seen = _in_memory()
    seen.request(REQUEST).ended("error", prompt_tokens=0, completion_tokens=0, error_code="service_unavailable")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "service_unavailable"
    assert not span.status.is_ok


def _in_memory() -> tuple[Any, tracing.Tracing]:
    exported = importlib.import_module("opentelemetry.sdk.trace.export")
    exporter = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = importlib.import_module("opentelemetry.sdk.trace").TracerProvider()
    provider.add_span_processor(exported.SimpleSpanProcessor(exporter))
    return exporter, tracing.Tracing(provider)
