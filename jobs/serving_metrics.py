"""Figures of serving for Prometheus, under the names that vLLM made usual.

Guarantees: no label but a model of the catalog, a reason or a code, so that their number does not grow
with use; times are differences of one monotonic clock within one process; following a token costs
microseconds, since children are looked up once per request and counts go in batches. The values are shared
between processes by ``prometheus_client``'s files; what becomes of those is the site's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from jobs.inference.engine import TokenChunk
from jobs.observation import ObservedRequest

FINISH_REASONS = ("stop", "length", "cancelled", "budget")
_COUNTED_EVERY_SECONDS = 0.25
_SHORT = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_FIRST = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_LONG = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_COUNTS = tuple(float(4**power) for power in range(10))


class ServingMetrics:
    """An ``Observer``. One per process, since its values are files named for the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, _ModelFigures] = {}
        self._running = self._gauge("num_requests_running", "Requests that have had their first token.")
        self._waiting = self._gauge("num_requests_waiting", "Requests sent to the engine that have had no token yet.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that were answered.")
        self._generation_tokens = self._counter("generation_tokens", "Completion tokens, as counted for the bill.")
        self._success = self._counter(
            "request_success", "Requests that ended well, cancelled ones included.", "finished_reason"
        )
        self._failure = self._counter("request_failure", "Requests that failed after they were admitted.", "code")
        self._refused = Counter(
            "fabstir_requests_refused",
            "Requests refused before their first token, by the code of the error.",
            ["code"],
            registry=self.registry,
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the hand-over to the engine to the first token.", _FIRST
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two chunks, divided by the tokens of the second.", _SHORT
        )
        self._whole = self._histogram(
            "e2e_request_latency_seconds", "From the hand-over to the engine to the closed books.", _LONG
        )
        self._queued = self._histogram("request_queue_time_seconds", "Waiting for a turn in this host's engine.", _LONG)
        self._prompts = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _COUNTS)
        self._answers = self._histogram("request_generation_tokens", "Completion tokens of a request.", _COUNTS)

    def request(self, request: ObservedRequest) -> RequestFigures:
        """See ``Observer.request``."""
        return RequestFigures(self.of(request.model))

    def refused(self, code: str) -> None:
        """See ``Observer.refused``."""
        self._refused.labels(code).inc()

    def sockets(self, count: int) -> None:
        """See ``Observer.sockets``."""
        self._sockets.set(count)

    def prime(self, models: Iterable[str]) -> None:
        """Show zeros for models that nobody has asked for yet."""
        self._sockets.inc(0)
        for model in models:
            self.of(model)

    def of(self, model: str) -> _ModelFigures:
        """The figures of one model."""
        figures = self._models.get(model)
        if figures is None:
            figures = self._models[model] = _ModelFigures(self, model)
        return figures

    @cached_property
    def _sockets(self) -> Gauge:
        # Without a label it is a value at once, and so a file: only for who has sockets or shows figures.
        return Gauge(
            "fabstir_ws_connections",
            "Open WebSockets.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"fabstir_{name}", meaning, ["model_name"], registry=self.registry, multiprocess_mode="livesum")

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"fabstir_{name}", meaning, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fabstir_{name}", meaning, ["model_name"], registry=self.registry, buckets=buckets)


class _ModelFigures:
    """The children of one model, looked up once."""

    def __init__(self, all_of: ServingMetrics, model: str) -> None:
        self.running = all_of._running.labels(model)
        self.waiting = all_of._waiting.labels(model)
        self.prompt_tokens = all_of._prompt_tokens.labels(model)
        self.generation_tokens = all_of._generation_tokens.labels(model)
        self.success = {reason: all_of._success.labels(model, reason) for reason in FINISH_REASONS}
        self.first_token = all_of._first_token.labels(model)
        self.inter_token = all_of._inter_token.labels(model)
        self.whole = all_of._whole.labels(model)
        self.queued = all_of._queued.labels(model)
        self.prompts = all_of._prompts.labels(model)
        self.answers = all_of._answers.labels(model)
        self._failure = all_of._failure
        self._model = model

    def failed(self, code: str) -> None:
        self._failure.labels(self._model, code).inc()


class RequestFigures:
    """A ``Watch`` that fills in the figures of its request's model."""

    __slots__ = ("_begun", "_counted_at", "_figures", "_latest", "_pending", "_started")

    def __init__(self, figures: _ModelFigures) -> None:
        self._figures = figures
        self._begun = self._latest = self._counted_at = time.perf_counter()
        self._started = False
        self._pending = 0
        figures.waiting.inc()

    def chunk(self, chunk: TokenChunk) -> None:
        """See ``Watch.chunk``."""
        count = chunk.count
        if not count:
            return
        now = time.perf_counter()
        if self._started:
            self._figures.inter_token.observe((now - self._latest) / count)
        else:
            self._start(now, chunk)
        self._latest = now
        self._pending += count
        if now - self._counted_at >= _COUNTED_EVERY_SECONDS:
            self._count(now)

    def ended(self, finish_reason: str, *, prompt_tokens: int, completion_tokens: int, error_code: str) -> None:
        """See ``Watch.ended``."""
        figures, now = self._figures, time.perf_counter()
        self._count(now)
        (figures.running if self._started else figures.waiting).dec()
        if finish_reason in figures.success:
            figures.success[finish_reason].inc()
        else:
            figures.failed(error_code)
        if finish_reason in figures.success or completion_tokens:
            figures.prompt_tokens.inc(prompt_tokens)
            figures.prompts.observe(prompt_tokens)
            figures.answers.observe(completion_tokens)
            figures.whole.observe(now - self._begun)

    def _start(self, now: float, chunk: TokenChunk) -> None:
        figures = self._figures
        figures.first_token.observe(now - self._begun)
        figures.queued.observe(chunk.queued_seconds)
        figures.waiting.dec()
        figures.running.inc()
        self._started = True

    def _count(self, now: float) -> None:
        if self._pending:
            self._figures.generation_tokens.inc(self._pending)
            self._pending = 0
        self._counted_at = now
