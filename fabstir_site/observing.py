"""Composition: who looks on while this process answers requests."""

from __future__ import annotations

from django.conf import settings

from fabstir_site.tracing import make_tracing
from jobs.observation import Observer, Onlookers
from jobs.serving_metrics import ServingMetrics

SERVING_METRICS = ServingMetrics()
_TRACING = make_tracing(endpoint=settings.ENVIRONMENT.otlp_endpoint)
OBSERVER: Observer = Onlookers(SERVING_METRICS) if _TRACING is None else Onlookers(SERVING_METRICS, _TRACING)


def flush() -> None:
    """Send what onlookers have not sent yet. Blocks for a moment; call it last."""
    if _TRACING is not None:
        _TRACING.flush()
