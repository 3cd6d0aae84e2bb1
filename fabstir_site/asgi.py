"""The ASGI application: HTTP by Django, WebSocket by Channels.

Each WebSocket has a database thread of its own, so that one slow query does not stop the others.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
http_application = get_asgi_application()

# The applications' modules need Django to be set up first.
from fabstir_site.serving import SERVING  # noqa: E402
from jobs.routing import websocket_urlpatterns  # noqa: E402

Scope = dict[str, Any]
Application = Callable[
    [Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


def one_database_thread_each(inner: Application) -> Application:
    """Give every connection its own thread for ``database_sync_to_async``."""

    async def application(
        scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        async with ThreadSensitiveContext():
            await inner(scope, receive, send)

    return application


def single_slashes(inner: Application) -> Application:
    """Clients that join an address ending in "/" with "/v1/ws" ask for "//v1/ws": answer them too."""

    async def application(
        scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        path = scope.get("path", "")
        if "//" in path:
            while "//" in path:
                path = path.replace("//", "/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await inner(scope, receive, send)

    return application


application = single_slashes(
    ProtocolTypeRouter(
        {
            "http": http_application,
            "websocket": one_database_thread_each(URLRouter(websocket_urlpatterns(SERVING))),
        }
    )
)
