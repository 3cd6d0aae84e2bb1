"""The engine behind a Unix-domain socket, for any number of client processes.

Guarantees: many requests share a connection; a connection that ends cancels its requests; a client
that does not read delays only itself; ``close`` ends every stream with its last chunk before the
connection is closed. Loads no models and handles no signals (``process`` does).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from jobs.inference import frames
from jobs.inference.engine import Engine, EngineError, GenerationFailed, GenerationRequest

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107


class SocketInUse(Exception):
    """Something answers on the socket already, or the path cannot hold a socket."""


def bind_socket(path: Path) -> socket.socket:
    """A socket bound to ``path`` with mode 0600; a stale socket file is replaced.

    Raises ``SocketInUse``.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise SocketInUse(f"The socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes. Choose a shorter one.")
    if _answers(path):
        raise SocketInUse(f"An engine is serving on {path} already. Stop it or choose another socket.")
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise SocketInUse(f"The socket {path} cannot be created: {error.strerror}.") from error
    finally:
        os.umask(before)
    return bound


class EngineServer:
    """Serves one ``Engine`` on one bound socket."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, bound: socket.socket) -> None:
        """Begin to accept connections."""
        self._server = await asyncio.start_unix_server(self._accept, sock=bound)

    def stop_accepting(self) -> None:
        """Refuse new connections; existing ones go on."""
        if self._server is not None:
            self._server.close()

    async def close(self, *, patience: float) -> None:
        """Wait up to ``patience`` seconds until all streams have ended, then close all connections."""
        tasks = [task for connection in self._connections for task in connection.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        await asyncio.gather(*(connection.close(patience=patience) for connection in self._connections))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._engine, reader=reader, writer=writer)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)


class _Connection:
    """One client: reads its frames, runs one task per request."""

    def __init__(self, engine: Engine, *, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Handle frames until the client goes away; then stop all that it asked for."""
        try:
            while (frame := await frames.read_frame(self._reader)) is not None:
                await self._handle(frame)
        except frames.FrameError as error:
            logger.warning("closing a client connection: %s", error)
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            self._writer.close()

    async def close(self, *, patience: float) -> None:
        """Send what is buffered and close; give up on a client that does not read."""
        self._writer.close()
        try:
            async with asyncio.timeout(0 if self.tasks else patience):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            self._writer.transport.abort()

    async def _handle(self, frame: frames.Frame) -> None:
        operation = frame["op"]
        if operation == "generate":
            self._start(self._stream(int(frame["id"]), frames.request_of(frame)))
        elif operation == "cancel":
            await self._engine.cancel(str(frame.get("request_id")))
        elif operation == "models":
            self._writer.write(frames.pack_models(int(frame["id"]), await self._engine.models()))
        else:
            raise frames.FrameError(f"The operation {operation!r} is unknown.")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _stream(self, stream: int, request: GenerationRequest) -> None:
        """One request from its first to its last frame. Process boundary: any failure is answered."""
        try:
            await self._send_chunks(stream, request)
        except ConnectionError:
            logger.info("a client went away during request %s", request.request_id)
        except EngineError as error:
            self._writer.write(frames.pack_error(stream, error))
        except Exception as error:
            logger.exception("request %s failed", request.request_id)
            failure = GenerationFailed(f"The engine failed: {type(error).__name__}.")
            self._writer.write(frames.pack_error(stream, failure))

    async def _send_chunks(self, stream: int, request: GenerationRequest) -> None:
        async with contextlib.aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                self._writer.write(frames.pack_chunk(stream, chunk))
                await self._writer.drain()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise SocketInUse(f"The socket path {path} cannot be used: {error}.") from error
    return True
