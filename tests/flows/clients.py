"""Clients of the ASGI application, by its own protocol and without a server: requests that can be dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asgiref.testing import ApplicationCommunicator
from channels.testing import WebsocketCommunicator

PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Exchange:
    """One HTTP request on its way. ``drop`` is what the application sees when the client goes away."""

    def __init__(
        self,
        application: Any,
        *,
        path: str,
        method: str,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        sent = {"host": "testserver", "content-length": str(len(body)), **(headers or {})}
        raw_headers = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
        if content_type:
            raw_headers.append((b"content-type", content_type.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": raw_headers,
            "client": ["127.0.0.1", 40000],
            "server": ["testserver", 80],
        }
        self._communicator = ApplicationCommunicator(application, scope)
        self._body = body

    async def send(self) -> Exchange:
        await self._communicator.send_input({"type": "http.request", "body": self._body, "more_body": False})
        return self

    async def answer(self) -> Answer:
        """The whole answer."""
        start = await self.start()
        raw = b"".join([piece async for piece in self.pieces()])
        await self._communicator.wait(timeout=PATIENCE_SECONDS)
        headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Answer(status=start["status"], headers=headers, raw=raw)

    async def start(self) -> Any:
        return await self._communicator.receive_output(PATIENCE_SECONDS)

    async def pieces(self) -> Any:
        while True:
            message = await self._communicator.receive_output(PATIENCE_SECONDS)
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next ``count`` server-sent events."""
        found: list[dict[str, Any]] = []
        async for piece in self.pieces():
            found += sse_events(piece)
            if len(found) >= count:
                return found
        return found

    async def drop(self) -> None:
        await self._communicator.send_input({"type": "http.disconnect"})
        await self._communicator.wait(timeout=PATIENCE_SECONDS)


def sse_events(raw: bytes) -> list[dict[str, Any]]:
    """The JSON events in a piece of an event stream; ``[DONE]`` is left out."""
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


class Socket:
    """One WebSocket. ``ask`` sends a message and returns the frames that answer it."""

    def __init__(self, application: Any, *, path: str = "/v1/ws", headers: Mapping[str, str] | None = None) -> None:
        raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self._communicator = WebsocketCommunicator(application, path, headers=raw_headers)

    async def __aenter__(self) -> Socket:
        connected, _ = await self._communicator.connect(timeout=PATIENCE_SECONDS)
        assert connected
        assert (await self.frame())["type"] == "connected"
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.drop()

    async def drop(self) -> None:
        """As the application sees a lost connection; waits until it has dealt with it."""
        if not self._communicator.future.done():
            await self._communicator.disconnect(code=1006, timeout=PATIENCE_SECONDS)

    async def refused(self) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Connect where that is not allowed: the error, the end that follows it, and the close code."""
        connected, _ = await self._communicator.connect(timeout=PATIENCE_SECONDS)
        assert connected
        return await self.frame(), await self.frame(), await self.closed_with()

    async def send(self, message: Any) -> None:
        if isinstance(message, bytes):
            await self._communicator.send_to(bytes_data=message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            await self._communicator.send_to(text_data=text)

    async def frame(self) -> dict[str, Any]:
        return json.loads(await self._communicator.receive_from(PATIENCE_SECONDS))

    def waiting(self) -> int:
        """Frames that were sent and not read yet."""
        return int(self._communicator.output_queue.qsize())

    async def closed_with(self) -> int:
        message = await self._communicator.receive_output(PATIENCE_SECONDS)
        assert message["type"] == "websocket.close", message
        return int(message["code"])

    async def until_closed(self) -> tuple[list[dict[str, Any]], int]:
        """Everything until the application closes the socket, and its code."""
        frames = []
        while (message := await self._communicator.receive_output(PATIENCE_SECONDS))["type"] == "websocket.send":
            frames.append(json.loads(message["text"]))
        return frames, int(message["code"])

    async def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Frames up to the first of one of ``kinds``."""
        frames = [await self.frame()]
        while frames[-1]["type"] not in kinds:
            frames.append(await self.frame())
        return frames

    async def ask(self, message: Any) -> list[dict[str, Any]]:
        await self.send(message)
        return await self.until("stream_end", "session_init_ack", "session_end_ack", "pong")

    async def chunks(self, tokens: int) -> list[dict[str, Any]]:
        """Frames until ``tokens`` tokens have arrived."""
        frames: list[dict[str, Any]] = []
        while sum(frame.get("tokens", 0) for frame in frames) < tokens:
            frames.append(await self.frame())
        return frames


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame.get("content", "") for frame in frames)
