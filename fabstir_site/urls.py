"""Every HTTP address of the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView

from fabstir_site import health, metrics, openapi
from fabstir_site.serving import SERVING
from jobs.urls import urlpatterns as inference_urlpatterns
from settlement import openapi as settlement_openapi
from settlement.urls import urlpatterns as settlement_urlpatterns

DESCRIBED = (settlement_openapi.part(), openapi.part())
"""What ``/v1/openapi.json`` says of addresses other than those of inference."""


def _read(view: Callable[..., Any]) -> Callable[..., Any]:
    """``view`` for GET and HEAD alone, without the check for forged requests: it knows no cookies."""
    return csrf_exempt(require_safe(view))


urlpatterns = [
    path("", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
    path("livez", _read(health.livez)),
    path("readyz", _read(health.readyz)),
    path("health", _read(health.health)),
    path("v1/health", _read(health.health)),
    path("status", _read(health.status)),
    path("v1/version", _read(health.version)),
    path("v1/chains", _read(health.chains)),
    path("metrics", metrics.metrics),
    *inference_urlpatterns(SERVING, described=DESCRIBED),
    *settlement_urlpatterns,
]
