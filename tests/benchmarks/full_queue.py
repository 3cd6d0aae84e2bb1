"""How soon a full queue says so: refusals of a node whose waiting room is taken, over HTTP and WebSocket.

Measures a running node with its environment; prints one JSON object. The waiting room is filled with
requests for long answers, which are dropped at the end; every request that was let in must have waited.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from django.conf import settings  # noqa: E402

PROBES = 100
_ROOM_OF_BATCHES = 64
_PATIENCE_SECONDS = 5.0
_LET_IN = aiohttp.ClientTimeout(total=5)
"""Who has no answer after this time was not refused."""
_PROMPT = {"model": "default", "prompt": "Tell a very long story.", "max_tokens": 1000, "temperature": 0}


def main() -> None:
    sys.stdout.write(json.dumps(asyncio.run(_measure())) + "\n")


async def _measure() -> dict[str, float]:
    address = settings.ENVIRONMENT.local_url
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, connector=connector) as http, http.ws_connect("/v1/ws") as socket:
        crowd = [asyncio.ensure_future(_wait_in_line(http)) for _ in range(_size_of_the_crowd())]
        await _until_full(http)
        over_http, let_in_over_http = await _probes(lambda: _refused_over_http(http))
        over_socket, let_in_over_socket = await _probes(lambda: _refused_over_socket(socket))
        for one in crowd:
            one.cancel()
        await asyncio.wait(crowd)
    told = {"full queue: probes that were let in": float(let_in_over_http + let_in_over_socket)}
    return told | {
        f"full queue: {name}, {quantity}, ms": 1000 * value
        for name, latencies in (("503 over HTTP", over_http), ("error frame over WebSocket", over_socket))
        for quantity, value in (("median", statistics.median(latencies)), ("slowest of 100", max(latencies)))
    }


def _size_of_the_crowd() -> int:
    """More than can run and wait, whatever the machine runs at once."""
    return int(settings.ENVIRONMENT.engine_queue_size) + _ROOM_OF_BATCHES


async def _wait_in_line(http: aiohttp.ClientSession) -> None:
    """Hold one place; whoever is served or refused comes again."""
    while True:
        async with http.post("/v1/inference", json=_PROMPT) as answer:
            await answer.read()
        await asyncio.sleep(random.uniform(0.5, 1.5) * _PATIENCE_SECONDS)


async def _until_full(http: aiohttp.ClientSession) -> None:
    """Waits until refusals are all that is answered."""
    deadline = time.monotonic() + 60
    refused = 0
    while refused < 5:
        if time.monotonic() > deadline:
            raise SystemExit("the queue does not get full")
        try:
            async with http.post("/v1/inference", json=_PROMPT, timeout=aiohttp.ClientTimeout(total=1)) as answer:
                refused = refused + 1 if answer.status == 503 else 0
        except TimeoutError:
            refused = 0
        await asyncio.sleep(0.05)


async def _probes(probe: Callable[[], Awaitable[float | None]]) -> tuple[list[float], int]:
    """The seconds of the refusals, and how many were let in because somebody's place had just become free."""
    latencies: list[float] = []
    let_in = 0
    while len(latencies) < PROBES:
        seconds = await probe()
        if seconds is None:
            let_in += 1
        else:
            latencies.append(seconds)
    return latencies, let_in


async def _refused_over_http(http: aiohttp.ClientSession) -> float | None:
    started = time.perf_counter()
    try:
        async with http.post("/v1/inference", json=_PROMPT, timeout=_LET_IN) as answer:
            body = await answer.json()
            seconds = time.perf_counter() - started
            if answer.status != 503 or "Retry-After" not in answer.headers:
                raise SystemExit(f"not refused as it should be: {answer.status} {body}")
    except TimeoutError:
        return None
    return seconds


async def _refused_over_socket(socket: aiohttp.ClientWebSocketResponse) -> float | None:
    started = time.perf_counter()
    await socket.send_json({"type": "inference", "id": "probe", "request": _PROMPT})
    seconds: float | None = None
    while True:
        try:
            frame = await socket.receive_json(timeout=_LET_IN.total)
        except TimeoutError:
            await socket.send_json({"type": "stream_cancel"})
            continue
        if frame["type"] == "error":
            if frame["code"] != "service_unavailable":
                raise SystemExit(f"not refused as it should be: {frame}")
            seconds = time.perf_counter() - started
        elif frame["type"] == "stream_end":
            return seconds


if __name__ == "__main__":
    main()
