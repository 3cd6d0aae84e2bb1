"""The one place that chooses the engine: this node's own engine process, or an inference server elsewhere."""

from __future__ import annotations

from django.conf import settings

from jobs.inference.client import EngineClient
from jobs.inference.openai_http import OpenAIHttpEngine


def make_engine() -> EngineClient | OpenAIHttpEngine:
    """The engine that the environment names, connected when first used. Close it where it was used."""
    environment = settings.ENVIRONMENT
    if environment.engine_upstream is not None:
        return OpenAIHttpEngine(environment.engine_upstream)
    return EngineClient(environment.engine_socket)
