"""WebSockets of the web server with an end to what they may pile up, in either direction.

daphne hands every frame on at once and writes whatever it is given, so that a client which sends faster
than it is answered, or reads slower than it is answered, fills this process's memory. Guarantees that
sending waits while a reader's buffers are full, that no more is read from a client while what it sent is
waiting, and that a frame beyond the limits is answered by a close code that says so. Compression is never
negotiated, so that no small frame becomes a large one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from autobahn.exception import Disconnected
from daphne.server import Server
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import reactor

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

_FLOW = "fabstir.flow"
_WAITING_MESSAGES = 64
_WAITING_BYTES = 2 * 1024 * 1024
_FLUSH_SECONDS = 5


class FlowControlledSocket(WebSocketProtocol):  # type: ignore[misc]  # daphne is untyped
    """A connection that can be waited for: ``drained`` is unset while its write buffer is full."""

    _giving_up: Any = None

    def onConnect(self, request: Any) -> Any:  # noqa: N802 - autobahn's name
        self.drained = asyncio.Event()
        self.drained.set()
        self._messages = 0
        self._bytes = 0
        self._reading = True
        return super().onConnect(request)

    def onOpen(self) -> None:  # noqa: N802
        super().onOpen()
        # The HTTP channel that this connection began as was told when to pause; it is over.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N802, N803
        self._messages += 1
        self._bytes += len(payload)
        if self._reading and (self._messages >= _WAITING_MESSAGES or self._bytes >= _WAITING_BYTES):
            self._reading = False
            self.transport.pauseProducing()
        super().onMessage(payload, isBinary)

    def taken(self, message: Any) -> None:
        """The application has taken one of the messages that waited for it."""
        content = message.get("text") or message.get("bytes") or ""
        self._messages -= 1
        # As long as its bytes, or shorter: what is left over is forgotten with the last message.
        self._bytes = self._bytes - len(content) if self._messages else 0
        if not self._reading and self._messages < _WAITING_MESSAGES // 2 and self._bytes < _WAITING_BYTES:
            self._reading = True
            self.transport.resumeProducing()

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:  # noqa: N802, N803
        self.drained.set()
        super().onClose(wasClean, code, reason)

    def serverClose(self, code: int | None = None) -> None:  # noqa: N802
        # autobahn leaves an application only the private codes; ours say which rule of the protocol was broken.
        self.sendCloseFrame(code=1000 if code is None else code, isReply=False)

    def dropConnection(self, abort: bool = False) -> None:  # noqa: N802
        super().dropConnection(abort)
        if not abort and self._giving_up is None:
            # The transport waits until its peer has read what was written to it: one that reads no more never does.
            self._giving_up = reactor.callLater(_FLUSH_SECONDS, self._give_up)  # type: ignore[arg-type]  # as in web.py

    def _give_up(self) -> None:
        self._giving_up = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        if hasattr(self, "drained"):
            self.drained.set()
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        super().connectionLost(reason)

    # What the transport calls on whoever writes to it.

    def pauseProducing(self) -> None:  # noqa: N802
        self.drained.clear()

    def resumeProducing(self) -> None:  # noqa: N802
        self.drained.set()

    def stopProducing(self) -> None:  # noqa: N802
        self.drained.set()


class FlowControlledServer(Server):  # type: ignore[misc]  # daphne is untyped
    """daphne's server, with the sockets above."""

    def __init__(self, *, application: Application, **options: Any) -> None:
        super().__init__(application=resuming(application), **options)
        reactor.callWhenRunning(self._control_flow)

    def _control_flow(self) -> None:
        self.ws_factory.protocol = FlowControlledSocket
        # A peer that breaks the protocol, or a limit, is told which before it is dropped.
        self.ws_factory.setProtocolOptions(failByDrop=False, closeHandshakeTimeout=2)

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """See ``Server``."""
        if isinstance(protocol, FlowControlledSocket):
            scope[_FLOW] = protocol
        return super().create_application(protocol, scope)

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """See ``Server``; returns when there is room for the next."""
        try:
            await super().handle_reply(protocol, message)
        except Disconnected:
            # The peer went between two frames; its application hears of that as any other end of a socket.
            return
        if message["type"] == "websocket.send" and isinstance(protocol, FlowControlledSocket):
            await protocol.drained.wait()


def resuming(application: Application) -> Application:
    """``application``, telling the connection what it takes from it."""

    async def told(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        flow: FlowControlledSocket | None = scope.pop(_FLOW, None)
        if flow is None:
            await application(scope, receive, send)
            return

        async def take() -> Any:
            message = await receive()
            if message["type"] == "websocket.receive":
                flow.taken(message)
            return message

        await application(scope, take, send)

    return told
