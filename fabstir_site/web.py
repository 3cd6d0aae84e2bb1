"""The web process: daphne with an orderly end.

At SIGTERM running generations are cancelled and their books closed before the process goes, so that
a restart loses no counted token.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from typing import NoReturn

from daphne.endpoints import build_endpoint_description_strings
from django.conf import settings
from twisted.internet import defer, reactor

from fabstir_site import observing, shared_metrics
from fabstir_site.asgi import application
from fabstir_site.serving import SERVING, SOCKETS
from fabstir_site.web_sockets import FlowControlledServer

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 15


def serve(*, host: str, port: int) -> NoReturn:
    """Serve HTTP and WebSocket until SIGTERM or SIGINT; ends the process."""
    shared_metrics.join(settings.ENVIRONMENT.metrics_dir)
    server = FlowControlledServer(
        application=application,
        endpoints=build_endpoint_description_strings(host=host, port=port),
        signal_handlers=True,
        application_close_timeout=5,
        server_name="",
        ping_interval=SOCKETS.limits.ping_seconds,
        ping_timeout=SOCKETS.limits.ping_seconds,
        websocket_max_message_size=SOCKETS.limits.max_message_bytes,
        websocket_max_frame_size=SOCKETS.limits.max_message_bytes,
        websocket_timeout=-1,
        websocket_connect_timeout=10,
    )
    reactor.addSystemEventTrigger("before", "shutdown", _close_books)  # type: ignore[arg-type]  # the stub is wrong
    # What was imported until here stays: looking through all of it now and then held every answer up for 0.2 s.
    gc.collect()
    gc.freeze()
    server.run()
    # The books are closed. Tearing the interpreter down with generators of dropped clients still
    # suspended has ended in a segmentation fault, which a supervisor takes for a crash.
    logging.shutdown()
    os._exit(0)


def _close_books() -> defer.Deferred[None]:
    return defer.Deferred.fromFuture(asyncio.ensure_future(_drain()))


async def _drain() -> None:
    try:
        await asyncio.wait_for(SERVING.shut_down(), timeout=_DRAIN_SECONDS)
    except TimeoutError:
        logger.error("generations did not end within %d s; up to one usage window each is lost", _DRAIN_SECONDS)
    await asyncio.to_thread(observing.flush)
