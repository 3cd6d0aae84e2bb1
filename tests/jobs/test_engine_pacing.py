"""How often the pieces of many answers leave the engine: together and now and then, first and last ones at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from jobs.inference import frames, server
from jobs.inference.catalog_scheduler import CatalogScheduler
from jobs.inference.engine import ChatMessage, GenerationFailed, GenerationRequest, TokenChunk
from jobs.inference.generation import Generation
from jobs.inference.server import EngineServer, bind_socket

Arrived = dict[int, TokenChunk]


class Letters:
    """Token id 65 is "A"."""

    def push(self, token_ids: Iterable[int]) -> str:
        return "".join(map(chr, token_ids))

    def flush(self) -> str:
        return ""


class ByHand:
    """An engine whose answers are produced by the test."""

    def __init__(self) -> None:
        self.rows: list[Generation] = []

    def busy(self) -> None:
        return None

    def watch_room(self, told: object) -> None:
        pass

    def open(self, request: GenerationRequest, *, notify: Callable[[], None]) -> Generation:
        row = Generation(request, notify=notify)
        row.prepare((1,), limit=100, detokenizer=Letters())
        self.rows.append(row)
        return row

    def release(self, row: Generation) -> None:
        pass

    def step(self, rows: Iterable[Generation]) -> None:
        """One token for each, told together as a batch does."""
        rows = list(rows)
        for row in rows:
            row.deliver(65 + row.produced)
        for row in rows:
            row.notify()


class Peer:
    """What one client reads."""

    def __init__(self, engine: ByHand, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine, self.reader, self._writer = engine, reader, writer

    async def ask(self, *numbers: int) -> None:
        wanted = len(self._engine.rows) + len(numbers)
        for number in numbers:
            request = GenerationRequest(
                request_id=str(number), model="m", messages=(ChatMessage(role="user", content="?"),), max_tokens=100
            )
            self._writer.write(frames.pack_request(number, request))
        while len(self._engine.rows) < wanted:
            await asyncio.sleep(0)

    async def next(self) -> Arrived:
        """The next frame's chunks by stream."""
        async with asyncio.timeout(10):
            frame = await frames.read_frame(self.reader)
        assert frame is not None
        return dict(frames.chunks_of(frame))


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[ByHand, Peer]]:
    engine = ByHand()
    served = EngineServer(cast("CatalogScheduler", engine))
    await served.start(bind_socket(path))
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield engine, Peer(engine, reader, writer)
    finally:
        writer.close()
        served.stop_accepting()
        await served.close(patience=0)


@pytest.fixture
def endless_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSE_SECONDS_PER_STREAM", 1000.0)
    monkeypatch.setattr(server, "_LONGEST_PAUSE_SECONDS", 1000.0)


@pytest.mark.usefixtures("endless_pause")
async def test_in_a_pause_only_first_and_last_pieces_leave(tmp_path: Path) -> None:
    async with serving(tmp_path / "engine.sock") as (engine, peer):
        await peer.ask(*range(1, 21))
        engine.step(engine.rows)
        assert {number: chunk.text for number, chunk in (await peer.next()).items()} == dict.fromkeys(range(1, 21), "A")
        engine.step(engine.rows)
        assert set((await peer.next()).values()) == {
            TokenChunk(sequence=1, token_ids=(66,), text="B", prompt_tokens=1, finish_reason=None)
        }
        for _ in range(3):
            engine.step(engine.rows)
        await peer.ask(21)
        engine.step(engine.rows[20:])
        assert {number: chunk.text for number, chunk in (await peer.next()).items()} == {21: "A"}
        engine.rows[0].finish("stop")
        engine.rows[0].notify()
        last = await peer.next()
        assert list(last) == [1]
        assert (last[1].text, last[1].count, last[1].finish_reason) == ("CDE", 3, "stop")
        for row in engine.rows:
            row.cancel()
            row.notify()
        rest = await peer.next()
        assert {number: chunk.text for number, chunk in rest.items()} == dict.fromkeys(range(2, 21), "CDE") | {21: ""}
        assert {chunk.finish_reason for chunk in rest.values()} == {"cancelled"}


@pytest.mark.usefixtures("endless_pause")
async def test_a_failure_in_a_pause_follows_what_was_produced(tmp_path: Path) -> None:
    async with serving(tmp_path / "engine.sock") as (engine, peer):
        await peer.ask(1, 2)
        for _ in range(2):
            engine.step(engine.rows)
            assert len(await peer.next()) == 2
        engine.step(engine.rows)
        engine.rows[1].fail(GenerationFailed("the device is gone"))
        engine.rows[1].notify()
        rest = await peer.next()
        assert {number: (chunk.text, chunk.finish_reason) for number, chunk in rest.items()} == {2: ("C", None)}
        async with asyncio.timeout(10):
            frame = await frames.read_frame(peer.reader)
        assert frame is not None
        assert (frame["op"], frame["id"], str(frames.error_of(frame))) == ("error", 2, "the device is gone")


async def test_after_a_pause_everything_leaves_that_came_meanwhile(tmp_path: Path) -> None:
    async with serving(tmp_path / "engine.sock") as (engine, peer):
        await peer.ask(*range(1, 21))
        text = dict.fromkeys(range(1, 21), "")
        for _ in range(26):
            engine.step(engine.rows)
            await asyncio.sleep(0)
        pieces = 0
        while any(len(each) < 26 for each in text.values()):
            arrived = await peer.next()
            pieces += len(arrived)
            for number, chunk in arrived.items():
                text[number] += chunk.text
        assert set(text.values()) == {"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
        assert pieces < 20 * 26
