"""The ASGI application: HTTP by Django, WebSocket by Channels, static files of the admin."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
http_application = get_asgi_application()

# The applications' modules need Django to be set up first.
from fabstir_site.serving import SOCKETS  # noqa: E402
from jobs.routing import websocket_urlpatterns  # noqa: E402

Scope = dict[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


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
            "http": ASGIStaticFilesHandler(http_application),
            "websocket": URLRouter(websocket_urlpatterns(SOCKETS)),
        }
    )
)
