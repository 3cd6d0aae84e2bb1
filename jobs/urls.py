"""The HTTP addresses of inference."""

from __future__ import annotations

from django.urls import URLPattern, path

from jobs.completions import Serving
from jobs.views import InferenceView, ModelsView


def urlpatterns(serving: Serving) -> list[URLPattern]:
    """The routes of the HTTP interface, served by ``serving``."""
    return [
        path("v1/inference", InferenceView.as_view(serving=serving)),
        # A client that derives the address from ws://host/v1/ws by dropping "/ws" asks here.
        path("v1/v1/inference", InferenceView.as_view(serving=serving)),
        path("v1/models", ModelsView.as_view(serving=serving)),
    ]
