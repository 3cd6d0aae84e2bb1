"""Composition: the engine, the chain and the host's key, handed to the endpoints of this process."""

from __future__ import annotations

from django.conf import settings

from fabstir_site.observing import OBSERVER
from jobs.completions import Serving
from jobs.engine_choice import make_engine
from jobs.rate_limits import RateLimiter
from jobs.sockets import Sockets
from settlement.host_key import HOST_KEY
from settlement.job_lookup import ChainJobSource
from settlement.progress import CheckpointProgressFeed
from settlement.signatures import RecoveredSignatures

SERVING = Serving(
    engine=make_engine(),
    jobs=ChainJobSource(),
    serve_unpaid=settings.ENVIRONMENT.serve_unpaid,
    max_completion_tokens=settings.ENVIRONMENT.max_completion_tokens,
    spending=settings.ENVIRONMENT.access.spending,
    require_api_key=settings.ENVIRONMENT.access.require_api_key,
    limits=RateLimiter(
        url=settings.REDIS_URL,
        requests_per_minute=settings.ENVIRONMENT.access.requests_per_minute,
        tokens_per_minute=settings.ENVIRONMENT.access.tokens_per_minute,
    ),
    signatures=RecoveredSignatures(),
    session_authorizers=settings.ENVIRONMENT.access.session_authorizers,
    observer=OBSERVER,
)

SOCKETS = Sockets(
    serving=SERVING,
    host_key=HOST_KEY,
    feed=CheckpointProgressFeed(),
    limits=settings.ENVIRONMENT.socket_limits,
    kept_seconds=settings.ENVIRONMENT.disconnect_grace_seconds,
)
