"""The HTTP addresses of inference."""

from __future__ import annotations

from collections.abc import Sequence

from django.urls import URLPattern, path

from jobs.completions import Serving
from jobs.openai.views import (
    ChatCompletionsView,
    CompletionsView,
    DetokenizeView,
    ModelsView,
    ModelView,
    OpenApiView,
    TokenizeView,
)
from jobs.openapi_operations import Part
from jobs.session_auth_views import SessionAuthView
from jobs.usage_views import UsageView
from jobs.views import InferenceView


def urlpatterns(serving: Serving, *, described: Sequence[Part] = ()) -> list[URLPattern]:
    """The routes of the HTTP interface, served by ``serving``; ``described`` are those of the other apps."""
    return [
        path("v1/inference", InferenceView.as_view(serving=serving)),
        # A client that derives the address from ws://host/v1/ws by dropping "/ws" asks here.
        path("v1/v1/inference", InferenceView.as_view(serving=serving)),
        path("v1/session-auth", SessionAuthView.as_view(serving=serving)),
        path("v1/usage", UsageView.as_view()),
        path("v1/chat/completions", ChatCompletionsView.as_view(serving=serving)),
        path("v1/completions", CompletionsView.as_view(serving=serving)),
        path("v1/models", ModelsView.as_view(serving=serving)),
        path("v1/models/<path:model>", ModelView.as_view(serving=serving)),
        path("v1/openapi.json", OpenApiView.as_view(serving=serving, parts=described)),
        path("tokenize", TokenizeView.as_view(serving=serving)),
        path("detokenize", DetokenizeView.as_view(serving=serving)),
    ]
