"""The web process: daphne with an orderly end.

At SIGTERM running generations are cancelled and their books closed before the process goes, so that
a restart loses no counted token.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import NoReturn

from daphne.endpoints import build_endpoint_description_strings
from daphne.server import Server
from twisted.internet import defer, reactor

from fabstir_site.asgi import application
from fabstir_site.serving import SERVING

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 15


def serve(*, host: str, port: int) -> NoReturn:
    """Serve HTTP and WebSocket until SIGTERM or SIGINT; ends the process."""
    server = Server(
        application=application,
        endpoints=build_endpoint_description_strings(host=host, port=port),
        signal_handlers=True,
        application_close_timeout=5,
        server_name="",
        ping_interval=20,
        ping_timeout=30,
        websocket_timeout=-1,
        websocket_connect_timeout=10,
    )
    reactor.addSystemEventTrigger("before", "shutdown", _close_books)  # type: ignore[arg-type]  # the stub is wrong
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
