"""What an engine tells its clients of its queues, on a real socket to one that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

from jobs.inference import frames
from jobs.inference.catalog_scheduler import CatalogScheduler
from jobs.inference.engine import EngineBusy
from jobs.inference.server import EngineServer, bind_socket

TURNS = 200_000


class Queues:
    """The part of a scheduler that tells whether it is full."""

    def __init__(self) -> None:
        self.full: EngineBusy | None = None
        self._told: Callable[[EngineBusy | None], None] = lambda _: None

    def busy(self) -> EngineBusy | None:
        return self.full

    def watch_room(self, told: Callable[[EngineBusy | None], None]) -> None:
        self._told = told

    def turn(self, retry_after: int | None) -> None:
        self.full = None if retry_after is None else EngineBusy("full", retry_after=retry_after)
        self._told(self.full)


async def test_a_client_that_does_not_read_is_told_the_latest_and_no_pile_of_it(tmp_path: Path) -> None:
    queues = Queues()
    server = EngineServer(cast("CatalogScheduler", queues))
    await server.start(bind_socket(tmp_path / "engine.sock"))
    reader, writer = await asyncio.open_unix_connection(tmp_path / "engine.sock", limit=1024)
    try:
        queues.turn(1)
        assert await told(reader) == 1
        for number in range(TURNS):
            queues.turn(None if number % 2 else 2)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        queues.turn(30)
        heard = [await told(reader)]
        while heard[-1] != 30:
            heard.append(await told(reader))
        assert len(heard) < TURNS / 4, "what waits for a client that does not read must not grow"
        assert heard[:3] == [2, None, 2]
    finally:
        writer.close()
        server.stop_accepting()
        await server.close(patience=1)


async def told(reader: asyncio.StreamReader) -> int | None:
    """The next frame: the seconds after which to come back, None for room."""
    async with asyncio.timeout(10):
        frame = await frames.read_frame(reader)
    assert frame is not None
    assert frame["op"] == "room"
    busy = frames.room_of(frame)
    return None if busy is None else busy.retry_after
