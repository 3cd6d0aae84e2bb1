"""The WebSocket address."""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path, re_path

from jobs.consumers import InferenceConsumer
from jobs.sockets import Sockets


class UnknownAddress(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels is untyped
    """Refuses a handshake at an address where there is nothing (HTTP 403)."""

    async def connect(self) -> None:
        await self.close()


def websocket_urlpatterns(sockets: Sockets) -> list[Any]:
    """The routes of the WebSocket interface, served by ``sockets``."""
    return [
        path("v1/ws", InferenceConsumer.as_asgi(sockets=sockets)),
        # A client that joins an address ending in "/" asks for "//v1/ws", of which the WebSocket
        # library takes "v1" for a host name and leaves this.
        path("ws", InferenceConsumer.as_asgi(sockets=sockets)),
        re_path("", UnknownAddress.as_asgi()),
    ]
