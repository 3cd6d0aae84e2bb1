"""The WebSocket ``/v1/ws`` at the edge of the web server: who is let in, and the end of it.

A dropped socket cancels its generation and starts the session's grace period; it does not end the session.
"""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer

from jobs import answers
from jobs.connection import POLICY_VIOLATION, TRY_AGAIN_LATER, Connection
from jobs.dialects import Dialects
from jobs.http_callers import caller_of_socket
from jobs.protocol import RequestError
from jobs.sockets import Sockets

_CONNECTED = answers.encode({"type": "connected", "message": "WebSocket connected successfully"})


class InferenceConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels is untyped
    """One WebSocket connection; ``connection`` answers it."""

    sockets: Sockets

    def __init__(self, *args: Any, sockets: Sockets, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sockets = sockets
        self.connection = Connection(limits=sockets.limits, send=self._send_text, close=self.close)
        self.connection.handlers = Dialects(self.connection, sockets=sockets).handlers

    async def connect(self) -> None:
        await self.accept()
        try:
            caller = await caller_of_socket(self.scope, connection=str(self.connection.id))
        except RequestError as refusal:
            await self._turn_away(refusal, code=POLICY_VIOLATION)
            return
        self.connection.caller = caller
        if not self.sockets.admit(self.connection):
            limit = f"This address has {self.sockets.limits.connections_per_address} sockets open. Close some of them."
            full = RequestError(code="rate_limit_exceeded", message=limit, status=429)
            await self._turn_away(full, code=TRY_AGAIN_LATER)
            return
        await self.connection.send(_CONNECTED)

    async def _turn_away(self, refusal: RequestError, *, code: int) -> None:
        await self.connection.refuse(refusal, {})
        await self.close(code)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Also where the web server cut it off, or could not send: whatever it held is given back.
            await self.connection.ended()
            await self.sockets.leave(self.connection)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.sockets.holds(self.connection):
            await self.connection.receive(text_data if text_data is not None else bytes_data or b"")

    async def _send_text(self, text: str) -> None:
        await self.base_send({"type": "websocket.send", "text": text})
