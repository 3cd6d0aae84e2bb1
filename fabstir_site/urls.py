"""Every HTTP address of the node."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from fabstir_site import health
from fabstir_site.serving import SERVING
from jobs.urls import urlpatterns as inference_urlpatterns

urlpatterns = [
    path("", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
    path("livez", health.livez),
    path("readyz", health.readyz),
    path("health", health.health),
    path("v1/health", health.health),
    path("status", health.status),
    path("v1/version", health.version),
    *inference_urlpatterns(SERVING),
]
