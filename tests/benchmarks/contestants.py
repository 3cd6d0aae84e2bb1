"""Clients of the servers that are compared: this node over WebSocket and SSE, and llama.cpp's server.

Every client only reads and notes the time: what it does itself comes out of the same two cores.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from websockets.asyncio.client import connect

from tests.benchmarks.prompts import Prompt


@dataclass(slots=True, kw_only=True)
class Stream:
    """What one client saw; times in seconds since all were started. ``tokens`` as the server counts them."""

    prompt: Prompt
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All streams of one contestant, started together."""

    streams: tuple[Stream, ...]

    @property
    def tokens_per_second(self) -> float:
        return sum(stream.tokens for stream in self.streams) / max(stream.ended for stream in self.streams)

    @property
    def first_token(self) -> float:
        """Seconds to the first text, median of the streams that got any."""
        return statistics.median(stream.arrivals[0] for stream in self.streams if stream.arrivals)

    @property
    def silent(self) -> int:
        """How many streams got no text at all."""
        return sum(not stream.arrivals for stream in self.streams)

    def gap(self, quantile: int) -> float:
        """Seconds between two pieces of text of one stream, at the ``quantile`` (of 100)."""
        gaps = [
            later - earlier
            for stream in self.streams
            for earlier, later in zip(stream.arrivals, stream.arrivals[1:], strict=False)
        ]
        return statistics.quantiles(gaps, n=100)[quantile - 1]

    @property
    def worst_share(self) -> float:
        """The latest end of a stream, relative to when it would have ended if all shared the machine evenly.

        Work is prompt plus completion ids; a stream's even share of the round's own speed is what it
        gets while as many others as still have work are served beside it.
        """
        work = {id(stream): stream.prompt.tokens + stream.tokens for stream in self.streams}
        speed = sum(work.values()) / max(stream.ended for stream in self.streams)
        return max(
            stream.ended * speed / sum(min(work[id(stream)], other) for other in work.values())
            for stream in self.streams
        )


class Start:
    """The moment at which ``clients`` send their prompts: once all of them are connected."""

    def __init__(self, clients: int, *, clock_from: float | None = None) -> None:
        self._missing = clients
        self._at = clock_from
        self._given = asyncio.Event()

    async def ready(self) -> float:
        """Wait for the others; the time (``perf_counter``) that counts as the start."""
        self._missing -= 1
        if not self._missing:
            self._at = time.perf_counter() if self._at is None else self._at
            self._given.set()
        await self._given.wait()
        assert self._at is not None
        return self._at


Client = Callable[[Prompt, Start], Awaitable[Stream]]


async def together(client: Client, prompts: Sequence[Prompt]) -> Round:
    """All prompts at once."""
    start = Start(len(prompts))
    return Round(streams=tuple(await asyncio.gather(*(client(prompt, start) for prompt in prompts))))


async def one_at_a_time(client: Client, prompts: Sequence[Prompt]) -> Round:
    """One prompt after the other, as a single patient client would."""
    started = time.perf_counter()
    return Round(streams=tuple([await client(prompt, Start(1, clock_from=started)) for prompt in prompts]))


def over_websocket(address: str) -> Client:
    """This node's ``/v1/ws``, over sockets that are open already."""

    async def client(prompt: Prompt, start: Start) -> Stream:
        request = {"model": "default", "prompt": prompt.text, "max_tokens": prompt.limit, "temperature": 0}
        stream = Stream(prompt=prompt)
        async with connect(address, compression=None) as socket:
            started = await start.ready()
            await socket.send(json.dumps({"type": "inference", "id": "bench", "request": {**request, "stream": True}}))
            async for raw in socket:
                frame = json.loads(raw)
                if frame["type"] == "stream_chunk" and frame["content"]:
                    stream.arrivals.append(time.perf_counter() - started)
                elif frame["type"] == "error":
                    raise SystemExit(f"a prompt was refused: {raw!r}")
                elif frame["type"] == "stream_end":
                    stream.tokens, stream.ended = frame["tokens_used"], time.perf_counter() - started
                    return stream
        raise SystemExit("a WebSocket broke off")

    return client


def over_sse(session: aiohttp.ClientSession, address: str, *, model: str = "default") -> Client:
    """``/v1/chat/completions`` of this node or of llama.cpp's server."""

    async def client(prompt: Prompt, start: Start) -> Stream:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": prompt.limit,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        stream = Stream(prompt=prompt)
        started = await start.ready()
        async with session.post(address, json=body) as answer:
            if answer.status != 200:
                raise SystemExit(f"{address}: {answer.status} {await answer.text()}")
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                    stream.arrivals.append(time.perf_counter() - started)
                if event.get("usage"):
                    stream.tokens = event["usage"]["completion_tokens"]
        stream.ended = time.perf_counter() - started
        return stream

    return client
