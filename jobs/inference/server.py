"""The engine behind a Unix-domain socket, for any number of client processes.

Guarantees: many requests share a connection; a connection that ends cancels its requests; a client
that does not read delays only itself; ``close`` ends every stream with its last chunk before the
connection is closed. Loads no models and handles no signals (``process`` does).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jobs.inference import frames
from jobs.inference.catalog_scheduler import CatalogScheduler
from jobs.inference.engine import EngineBusy, EngineError, GenerationFailed, GenerationRequest, RequestRefused
from jobs.inference.generation import Generation

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107
_MOST_BUFFERED_BYTES = 64 * 1024
# Each piece of an answer costs its way to the client, through two processes and a socket: time that the models
# of a full machine compute in. So the pieces of many streams leave together and less often, up to twenty times a
# second; those of a few leave at once, and so do first and last pieces.
_PAUSE_SECONDS_PER_STREAM = 0.003
_LONGEST_PAUSE_SECONDS = 0.050


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
    """Serves one scheduler on one bound socket."""

    def __init__(self, engine: CatalogScheduler) -> None:
        self._engine = engine
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        engine.watch_room(self._tell_room)

    async def start(self, bound: socket.socket) -> None:
        """Begin to accept connections."""
        self._server = await asyncio.start_unix_server(self._accept, sock=bound)

    def stop_accepting(self) -> None:
        """Refuse new connections; existing ones go on."""
        if self._server is not None:
            self._server.close()

    async def close(self, *, patience: float) -> None:
        """Wait up to ``patience`` seconds until all streams have ended, then close all connections."""
        connections = list(self._connections)
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*(connection.finish() for connection in connections))
        except TimeoutError:
            logger.warning("closing connections whose clients do not read")
        await asyncio.gather(*(connection.close(patience=patience) for connection in connections))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._engine, reader=reader, writer=writer)
        self._connections.add(connection)
        if (busy := self._engine.busy()) is not None:
            connection.tell_room(busy)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    def _tell_room(self, busy: EngineBusy | None) -> None:
        for connection in self._connections:
            connection.tell_room(busy)


class _Connection:
    """One client: reads its frames, runs its requests, and writes what they produce.

    What the requests of the connection produced in one step, or in a few where they are many, leaves in
    one frame. While the client does not read, nothing is written: tokens pile up in the generations (which
    their own ``max_tokens`` bounds) and leave as fewer, larger chunks afterwards.
    """

    def __init__(self, engine: CatalogScheduler, *, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._generations: dict[int, Generation] = {}
        self._changed: dict[int, Generation] = {}
        self._hurrying: dict[int, Generation] = {}
        self._flushing: asyncio.Handle | None = None
        self._hurry: asyncio.Handle | None = None
        self._paused_until = 0.0
        self._blocked: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_done = asyncio.Event()

    async def serve(self) -> None:
        """Handle frames until the client goes away; then stop all that it asked for."""
        try:
            while (frame := await frames.read_frame(self._reader)) is not None:
                await self._handle(frame)
        except frames.FrameError as error:
            logger.warning("closing a client connection: %s", error)
        finally:
            for generation in self._generations.values():
                self._engine.release(generation)
            for told in (self._generations, self._changed, self._hurrying):
                told.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._writer.close()

    def tell_room(self, busy: EngineBusy | None) -> None:
        """Tell the client whether any request of its would be refused now."""
        # Who does not read is told when it reads again: what waits for it must not grow.
        if not self._writer.transport.is_closing() and self._blocked is None:
            self._writer.write(frames.pack_room(busy))
            self._wait_if_unread()

    async def finish(self) -> None:
        """Wait until every request has been answered to its end."""
        while self._generations or self._tasks:
            self._all_done.clear()
            await self._all_done.wait()

    async def close(self, *, patience: float) -> None:
        """Send what is buffered and close; give up on a client that does not read."""
        answered = not self._generations and not self._tasks
        self._writer.close()
        try:
            async with asyncio.timeout(patience if answered else 0):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            self._writer.transport.abort()

    async def _handle(self, frame: frames.Frame) -> None:
        operation = frame["op"]
        if operation == "generate":
            self._open(int(frame["id"]), frames.request_of(frame))
        elif operation == "cancel":
            await self._engine.cancel(str(frame.get("request_id")))
        elif operation in self._answers:
            self._start(self._answer(operation, frame))
        else:
            raise frames.FrameError(f"The operation {operation!r} is unknown.")

    def _open(self, number: int, request: GenerationRequest) -> None:
        try:
            generation = self._engine.open(request, notify=lambda: self._mark(number))
        except EngineError as error:
            self._writer.write(frames.pack_error(number, error))
        else:
            self._generations[number] = generation

    def _mark(self, number: int) -> None:
        """A generation may have something to tell: write it with that of the others of this moment."""
        generation = self._generations.get(number)
        if generation is None:
            return
        if generation.hurries:
            self._changed.pop(number, None)
            self._hurrying[number] = generation
        else:
            self._changed[number] = generation
        if self._blocked is None:
            self._schedule()

    def _schedule(self) -> None:
        if self._hurrying and self._hurry is None:
            self._hurry = self._loop.call_soon(self._flush_hurrying)
        if self._changed and self._flushing is None:
            if self._paused_until > self._loop.time():
                self._flushing = self._loop.call_at(self._paused_until, self._flush_changed)
            else:
                self._flushing = self._loop.call_soon(self._flush_changed)

    def _flush_hurrying(self) -> None:
        self._hurry = None
        if self._blocked is not None:
            return
        hurrying, self._hurrying = self._hurrying, {}
        self._flush(hurrying)

    def _flush_changed(self) -> None:
        self._flushing = None
        if self._blocked is not None:
            return
        changed, self._changed = self._changed, {}
        pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS_PER_STREAM * len(changed))
        self._paused_until = self._loop.time() + pause
        self._flush(changed)

    def _flush(self, generations: Mapping[int, Generation]) -> None:
        if self._writer.transport.is_closing():
            return
        chunks = []
        ended = []
        for number, generation in generations.items():
            chunk = generation.take()
            if chunk is not None:
                chunks.append((number, chunk))
            if generation.is_over:
                ended.append((number, generation))
        if chunks:
            self._writer.write(frames.pack_chunks(chunks))
        for number, generation in ended:
            if generation.failure is not None:
                self._writer.write(frames.pack_error(number, generation.failure))
            del self._generations[number]
            self._engine.release(generation)
        self._tell_if_done()
        self._wait_if_unread()

    def _wait_if_unread(self) -> None:
        if self._blocked is None and self._writer.transport.get_write_buffer_size() > _MOST_BUFFERED_BYTES:
            self._blocked = self._start(self._wait_for_reader())

    async def _wait_for_reader(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            return  # serve() sees the end of the connection, too
        finally:
            self._blocked = None
        self.tell_room(self._engine.busy())
        self._schedule()

    async def _answer(self, operation: str, frame: frames.Frame) -> None:
        """A question with one frame as its answer. Process boundary: any failure is answered."""
        number = int(frame["id"])
        try:
            self._writer.write(await self._answers[operation](self, number, frame))
        except EngineError as error:
            self._writer.write(frames.pack_error(number, error))
        except frames.FrameError as error:
            self._writer.write(frames.pack_error(number, RequestRefused(str(error))))
        except Exception as error:
            logger.exception("the operation %s failed", operation)
            failure = GenerationFailed(f"The engine failed: {type(error).__name__}.")
            self._writer.write(frames.pack_error(number, failure))

    async def _models(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_models(number, await self._engine.models())

    async def _status(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_status(number, await self._engine.status())

    async def _tokenize(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_token_ids(number, await self._engine.tokenize(frames.text_to_tokenize_of(frame)))

    async def _detokenize(self, number: int, frame: frames.Frame) -> bytes:
        model, token_ids = frames.ids_to_detokenize_of(frame)
        return frames.pack_text(number, await self._engine.detokenize(model=model, token_ids=token_ids))

    async def _load(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_models(number, (await self._engine.load(str(frame.get("model"))),))

    async def _unload(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_models(number, (await self._engine.unload(str(frame.get("model"))),))

    async def _pin(self, number: int, frame: frames.Frame) -> bytes:
        pinned = frame.get("pinned") is True
        return frames.pack_models(number, (await self._engine.pin(str(frame.get("model")), pinned=pinned),))

    async def _refresh(self, number: int, frame: frames.Frame) -> bytes:
        return frames.pack_models(number, await self._engine.refresh())

    _answers: ClassVar = {
        "models": _models,
        "status": _status,
        "tokenize": _tokenize,
        "detokenize": _detokenize,
        "load": _load,
        "unload": _unload,
        "pin": _pin,
        "refresh": _refresh,
    }

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._tell_if_done()

    def _tell_if_done(self) -> None:
        if not self._generations and not self._tasks:
            self._all_done.set()


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
