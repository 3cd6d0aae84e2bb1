"""The engine process as an ``Engine``, from any event loop of any other process.

Guarantees: one connection per event loop, opened when first needed and again after the engine was
restarted; the loop is never blocked; a reader that pauses delays no other request, and what waits
for it is bounded by its own ``max_tokens``; everything received before the engine died is delivered
before ``EngineUnavailable`` is raised. Does not start or restart the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from jobs.inference import frames
from jobs.inference.engine import (
    EngineBusy,
    EngineStatus,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    TextToTokenize,
    TokenChunk,
)


class EngineClient:
    """An ``Engine`` over the engine process's Unix-domain socket. Safe to share between threads."""

    def __init__(self, socket_path: str | Path) -> None:
        self._path = Path(socket_path)
        self._links: dict[asyncio.AbstractEventLoop, _Link] = {}
        self._lock = threading.Lock()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``."""
        connection = await self._link().connect()
        stream = connection.open(capacity=request.max_tokens + 2)
        try:
            connection.send(frames.pack_request(stream.number, request))
            async for chunk in stream.chunks():
                yield chunk
        except frames.FrameError as error:
            raise GenerationFailed(f"The request cannot be sent to the engine: {error}") from error
        finally:
            if connection.close_stream(stream):
                connection.send(frames.pack({"op": "cancel", "request_id": request.request_id}))

    async def cancel(self, request_id: str) -> None:
        """See ``Engine.cancel``. An engine that is gone has nothing to cancel."""
        try:
            connection = await self._link().connect()
        except EngineUnavailable:
            return
        connection.send(frames.pack({"op": "cancel", "request_id": request_id}))

    def busy(self) -> EngineBusy | None:
        """See ``Engine.busy``: what the engine told last on the running event loop's connection."""
        return self._link().busy()

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``."""
        return frames.models_of(await self._ask(lambda stream: frames.pack({"op": "models", "id": stream})))

    async def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        return frames.status_of(await self._ask(lambda stream: frames.pack({"op": "status", "id": stream})))

    async def load(self, model: str) -> LoadedModel:
        """Load a model now, and wait for it. Raises ``ModelNotLoaded``, ``EngineUnavailable``."""
        return await self._change({"op": "load", "model": model})

    async def unload(self, model: str) -> LoadedModel:
        """Free a model's memory. Raises ``ModelNotLoaded``; ``RequestRefused`` if it is busy or pinned."""
        return await self._change({"op": "unload", "model": model})

    async def pin(self, model: str, *, pinned: bool) -> LoadedModel:
        """Load a model and keep it, or let it be unloaded again. Raises like ``load``."""
        return await self._change({"op": "pin", "model": model, "pinned": pinned})

    async def refresh(self) -> tuple[LoadedModel, ...]:
        """Have the engine read again which models it serves; returns them, the default first.

        Raises ``RequestRefused`` if it cannot use what it reads, ``EngineUnavailable``.
        """
        return frames.models_of(await self._ask(lambda stream: frames.pack({"op": "refresh", "id": stream})))

    async def tokenize(self, text: TextToTokenize) -> tuple[int, ...]:
        """See ``Engine.tokenize``."""
        return frames.token_ids_of(await self._ask(lambda stream: frames.pack_text_to_tokenize(stream, text)))

    async def detokenize(self, *, model: str, token_ids: tuple[int, ...]) -> str:
        """See ``Engine.detokenize``."""
        return frames.text_of(
            await self._ask(lambda stream: frames.pack_ids_to_detokenize(stream, model=model, token_ids=token_ids))
        )

    async def _change(self, frame: frames.Frame) -> LoadedModel:
        return frames.models_of(await self._ask(lambda stream: frames.pack(frame | {"id": stream})))[0]

    async def _ask(self, question: Callable[[int], bytes]) -> frames.Frame:
        """The one frame that answers ``question``."""
        connection = await self._link().connect()
        stream = connection.open(capacity=2)
        try:
            connection.send(question(stream.number))
            return await stream.answer()
        except frames.FrameError as error:
            raise EngineUnavailable(f"The engine answered nonsense: {error}") from error
        finally:
            connection.close_stream(stream)

    async def close(self) -> None:
        """Close the running event loop's connection; a later call opens a new one."""
        await self._link().close()

    def _link(self) -> _Link:
        loop = asyncio.get_running_loop()
        with self._lock:
            link = self._links.get(loop)
            if link is None:
                for closed in [known for known in self._links if known.is_closed()]:
                    del self._links[closed]
                link = self._links[loop] = _Link(self._path)
            return link


class _Link:
    """The one connection of one event loop, replaced when it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening = asyncio.Lock()
        self._connection: _Connection | None = None

    def busy(self) -> EngineBusy | None:
        """What the engine told last, if it is still there."""
        return self._connection.busy if self._connection is not None and self._connection.alive else None

    async def connect(self) -> _Connection:
        """The live connection. Raises ``EngineUnavailable``."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        async with self._opening:
            if self._connection is None or not self._connection.alive:
                self._connection = await self._open()
            return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> _Connection:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
        except OSError as error:
            raise EngineUnavailable(
                f"The engine does not answer on {self._path} ({error.strerror or error}). It may be starting."
            ) from error
        return _Connection(reader, writer=writer)


class _Connection:
    """One open socket; a task of its own sorts arriving frames into the streams."""

    def __init__(self, reader: asyncio.StreamReader, *, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, _Stream] = {}
        self._numbers = itertools.count(1)
        self.alive = True
        self.busy: EngineBusy | None = None
        self._task = asyncio.create_task(self._read(), name="engine-client")

    def open(self, *, capacity: int) -> _Stream:
        """A new stream for at most ``capacity`` frames."""
        stream = _Stream(next(self._numbers), capacity=capacity)
        if self.alive:
            self._streams[stream.number] = stream
        else:
            stream.break_off()
        return stream

    def close_stream(self, stream: _Stream) -> bool:
        """Forget a stream; True if the engine is still working on it."""
        known = self._streams.pop(stream.number, None) is not None
        return known and self.alive and not stream.ended

    def send(self, data: bytes) -> None:
        """Queue a frame for sending; a broken connection shows at the stream."""
        if self.alive:
            self._writer.write(data)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self) -> None:
        try:
            while (frame := await frames.read_frame(self._reader)) is not None:
                if frame["op"] == "chunks":
                    for number, chunk in frames.chunks_of(frame):
                        if (reader := self._streams.get(number)) is not None:
                            reader.put(chunk)
                elif frame["op"] == "room":
                    self.busy = frames.room_of(frame)
                elif (stream := self._streams.get(frame.get("id", 0))) is not None:
                    stream.put(frame)
        except frames.FrameError:
            pass  # the streams learn below that the connection is of no use any more
        finally:
            self.alive = False
            self._writer.close()
            for stream in self._streams.values():
                stream.break_off()


class _Stream:
    """What arrives for one request, in order, until something that ends it."""

    def __init__(self, number: int, *, capacity: int) -> None:
        self.number = number
        self.ended = False
        self._capacity = capacity
        self._arrived: asyncio.Queue[TokenChunk | frames.Frame | None] = asyncio.Queue()

    def put(self, arrived: TokenChunk | frames.Frame) -> None:
        """Called by the connection. More chunks than tokens were asked for end the stream."""
        if self._arrived.qsize() >= self._capacity:
            self.break_off()
        elif not self.ended:
            self.ended = not isinstance(arrived, TokenChunk) or arrived.finish_reason is not None
            self._arrived.put_nowait(arrived)

    def break_off(self) -> None:
        """The connection has ended; what arrived before is still delivered."""
        self.ended = True
        self._arrived.put_nowait(None)

    async def answer(self) -> frames.Frame:
        """The one frame of an answer. Raises the engine's typed error, or ``EngineUnavailable``."""
        arrived = await self._arrived.get()
        if isinstance(arrived, TokenChunk):
            raise frames.FrameError("A chunk is no answer.")
        return _without_error(arrived)

    async def chunks(self) -> AsyncGenerator[TokenChunk, None]:
        """The chunks up to the last. Raises like ``answer``, and ``GenerationFailed`` on a gap."""
        sequence = 0
        while True:
            chunk = await self._arrived.get()
            if not isinstance(chunk, TokenChunk):
                _without_error(chunk)
                raise GenerationFailed("The engine answered something else than tokens.")
            if chunk.sequence != sequence:
                raise GenerationFailed(f"Chunk {sequence} of the answer is missing.")
            sequence += 1
            yield chunk
            if chunk.finish_reason is not None:
                return


def _without_error(frame: frames.Frame | None) -> frames.Frame:
    if frame is None:
        raise EngineUnavailable("The engine process ended before its answer did.")
    if frame["op"] == "error":
        raise frames.error_of(frame)
    return frame
