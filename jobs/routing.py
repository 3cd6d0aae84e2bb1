"""The WebSocket address."""

from __future__ import annotations

from typing import Any

from django.urls import path

from jobs.completions import Serving
from jobs.consumers import InferenceConsumer


def websocket_urlpatterns(serving: Serving) -> list[Any]:
    """The routes of the WebSocket interface, served by ``serving``."""
    return [path("v1/ws", InferenceConsumer.as_asgi(serving=serving))]
