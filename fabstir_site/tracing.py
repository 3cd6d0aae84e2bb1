"""OpenTelemetry spans of generations, for hosts that collect traces.

Made only where ``requirements-tracing.txt`` is installed and ``OTEL_EXPORTER_OTLP_ENDPOINT`` names a
collector; else nothing here runs. Guarantees that a span has the attributes of OpenTelemetry's GenAI
conventions, counts what is billed, and holds nothing of what was said. Exporting happens in a thread
of its own and never holds up an answer.
"""

from __future__ import annotations

import logging
import time

from fabstir_site.version import VERSION
from jobs import log_ids
from jobs.inference.engine import TokenChunk
from jobs.observation import ObservedRequest

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Span, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

    INSTALLED = True
except ImportError:
    INSTALLED = False

logger = logging.getLogger(__name__)

_FLUSH_MILLISECONDS = 3000


def make_tracing(*, endpoint: str | None) -> Tracing | None:
    """What the environment asks for. The exporter reads its other ``OTEL_`` variables itself."""
    if endpoint is None:
        return None
    if not INSTALLED:
        logger.warning("no traces: install requirements-tracing.txt, or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": "fabstir-host", "service.version": VERSION}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """An ``Observer`` with a span for each request."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("fabstir_host", VERSION)

    def request(self, request: ObservedRequest) -> RequestSpan:
        """See ``Observer.request``. The task's log lines name the trace from here on."""
        span = self._tracer.start_span(
            f"{request.operation} {request.model}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": request.operation,
                "gen_ai.provider.name": "fabstir",
                "gen_ai.request.model": request.asked,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.request.temperature": request.temperature,
                "gen_ai.response.model": request.model,
                "gen_ai.response.id": request.id,
                "fabstir.path": request.path,
                **{f"fabstir.{name}": value for name, value in log_ids.known().items() if name != "trace_id"},
            },
        )
        log_ids.trace_id.set(format_trace_id(span.get_span_context().trace_id))
        return RequestSpan(span)

    def refused(self, code: str) -> None:
        """See ``Observer.refused``. What never reached the engine has no span."""

    def sockets(self, count: int) -> None:
        """See ``Observer.sockets``. Not for traces."""

    def flush(self) -> None:
        """Send what is left; waits for the collector, though not for long."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)


class RequestSpan:
    """A ``Watch`` that is one span."""

    __slots__ = ("_begun", "_span", "_started")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._begun = time.perf_counter()
        self._started = False

    def chunk(self, chunk: TokenChunk) -> None:
        """See ``Watch.chunk``."""
        if self._started or not chunk.count:
            return
        self._started = True
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - self._begun)
        self._span.set_attribute("fabstir.queued_seconds", chunk.queued_seconds)

    def ended(self, finish_reason: str, *, prompt_tokens: int, completion_tokens: int, error_code: str) -> None:
        """See ``Watch.ended``."""
        self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", completion_tokens)
        self._span.set_attribute("gen_ai.response.finish_reasons", [finish_reason])
        if error_code:
            self._span.set_attribute("error.type", error_code)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
