"""Composition: the engine and the chain, handed to the endpoints of this process."""

from __future__ import annotations

from django.conf import settings

from jobs.completions import Serving
from jobs.inference.client import EngineClient
from settlement.job_lookup import ChainJobSource

SERVING = Serving(
    engine=EngineClient(settings.ENVIRONMENT.engine_socket),
    jobs=ChainJobSource(),
    serve_unpaid=settings.ENVIRONMENT.serve_unpaid,
    max_completion_tokens=settings.ENVIRONMENT.max_completion_tokens,
)
