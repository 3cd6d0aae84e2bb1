"""``/metrics``: the node's figures for Prometheus, in its text format.

Guarantees that nobody but the operator reads them: a request from this machine that no proxy forwarded,
or one of somebody logged in as an operator. All figures come from the database and from counters, so
that reading them costs little and works while the chain is away, and any web process shows those of all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from fabstir_site import money_metrics, shared_metrics
from fabstir_site.observing import SERVING_METRICS
from fabstir_site.version import VERSION, git_revision
from nodes import catalog

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FORWARDED = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_VIA")


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Every figure, or 404 to strangers: they need not know that there is anything."""
    if not _is_operator(request):
        return HttpResponse(status=404)
    return HttpResponse("".join(_exposition()), content_type=_CONTENT_TYPE)


def _is_operator(request: HttpRequest) -> bool:
    if request.user.is_active and request.user.is_staff:
        return True
    # A proxy on this machine forwards strangers from a loopback address.
    if any(name in request.META for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _exposition() -> Iterator[str]:
    build = {"version": VERSION, "git_sha": git_revision()[:12], "chain_id": str(settings.ENVIRONMENT.chain_id)}
    yield from money_metrics.gauge("fabstir_build_info", "What runs here; always 1.", [(build, 1)])
    yield from money_metrics.exposition()
    SERVING_METRICS.prime(model.id for model in catalog.served_models())
    yield shared_metrics.exposition(settings.ENVIRONMENT.metrics_dir).decode()
