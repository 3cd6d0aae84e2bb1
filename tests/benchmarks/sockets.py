"""A thousand idle sockets and fifty active ones, alone and beside hostile peers: memory and latency.

Measures a running node with its environment; prints one JSON object. Latency is that of whole short
answers, 95th percentile, alternately without and with the hostile peers, which run as a process of
their own at the lowest priority: what they cost is what the node spends on them. One of them asks for
a long answer and does not read it; without them somebody asks for the same and reads, since computing it
is a service and what it costs the others no attack.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from django.conf import settings  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

from tests.benchmarks.soak import tree  # noqa: E402

IDLE, ACTIVE, ROUNDS, ROUND_SECONDS = 1000, 50, 3, 25
_MEBIBYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--be", choices=["hostile", "patient"], help="be these peers until killed")
    if peers := parser.parse_args().be:
        os.nice(19)
        asyncio.run(_be_hostile() if peers == "hostile" else _again_and_again(_patient_reader))
    sys.stdout.write(json.dumps(asyncio.run(_measure())) + "\n")


def _address() -> str:
    return settings.ENVIRONMENT.local_url.replace("http", "ws", 1) + "/v1/ws"


async def _measure() -> dict[str, float]:
    web = next(process for name, process in tree().items() if "web" in name)
    before = web.memory_info().rss
    quiet: list[float] = []
    beside: list[float] = []
    ratios = []
    async with AsyncExitStack() as stack:
        for _ in range(IDLE):
            await stack.enter_async_context(connect(_address()))
        idle = web.memory_info().rss
        await _latencies(5)
        for _ in range(ROUNDS):
            alone = await _latencies_beside("patient")
            disturbed = await _latencies_beside("hostile")
            quiet += alone
            beside += disturbed
            ratios.append(_p95(disturbed) / _p95(alone))
        after = web.memory_info().rss
    return {
        "web process before, MiB": before / _MEBIBYTE,
        f"memory of each of {IDLE} idle sockets, KiB": (idle - before) / IDLE / 1024,
        "web process after all, MiB": after / _MEBIBYTE,
        f"{ACTIVE} active sockets, answer p50, ms": 1000 * statistics.median(quiet),
        f"{ACTIVE} active sockets, answer p95, ms": 1000 * _p95(quiet),
        f"{ACTIVE} active sockets beside hostile peers, answer p95, ms": 1000 * _p95(beside),
        "answer p95 beside hostile peers / without": statistics.median(ratios),
    }


async def _latencies_beside(peers: str) -> list[float]:
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.sockets", "--be", peers])
    await asyncio.sleep(5)
    try:
        found = await _latencies(ROUND_SECONDS)
        if process.poll() is not None:
            raise SystemExit(f"the {peers} peers gave up")
    finally:
        process.kill()
        process.wait()
    return found


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[94]


async def _latencies(seconds: float) -> list[float]:
    """Of short answers, by all active sockets for so long."""
    until = time.monotonic() + seconds
    found = await asyncio.gather(*(_active(number, until) for number in range(ACTIVE)))
    return [latency for one in found for latency in one]


async def _active(number: int, until: float) -> list[float]:
    found = []
    async with connect(_address()) as socket:
        while time.monotonic() < until:
            started = time.perf_counter()
            request = {"model": "default", "prompt": f"Say {number}.", "max_tokens": 8, "temperature": 0}
            await socket.send(json.dumps({"type": "inference", "id": "bench", "request": request}))
            async for raw in socket:
                frame = json.loads(raw)
                if frame["type"] == "error":
                    raise SystemExit(f"a good request was refused: {frame}")
                if frame["type"] == "stream_end":
                    break
            found.append(time.perf_counter() - started)
    return found


async def _be_hostile() -> None:
    """One peer of each kind, over and over."""
    kinds: tuple[Callable[[], object], ...] = (_slow_reader, _silent_peer, _large_frame, _bad_utf8, _bomb, _noise)
    await asyncio.gather(*(_again_and_again(kind) for kind in kinds))


async def _again_and_again(kind: Callable[[], object]) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.wait_for(kind(), 20)  # type: ignore[arg-type]
        await asyncio.sleep(0.2)


async def _handshake(*, deflate: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A socket without a library, which would not break the rules."""
    port = int(_address().split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = ["GET /v1/ws HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines.append(f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}")
    if deflate:
        lines.append("Sec-WebSocket-Extensions: permessage-deflate")
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def _frame(payload: bytes, *, first: int = 0x81) -> bytes:
    """A masked frame (with a mask of zeros) of ``payload``; ``first`` is FIN, RSV1 and the opcode."""
    size = len(payload)
    if size < 126:
        return struct.pack(">BB4x", first, 0x80 | size) + payload
    if size < 65536:
        return struct.pack(">BBH4x", first, 0x80 | 126, size) + payload
    return struct.pack(">BBQ4x", first, 0x80 | 127, size) + payload


_LONG = {"type": "inference", "request": {"model": "default", "prompt": "Tell a story.", "max_tokens": 400}}


async def _slow_reader() -> None:
    _, writer = await _handshake()
    writer.write(_frame(json.dumps(_LONG).encode()))
    await asyncio.sleep(15)
    writer.close()


async def _patient_reader() -> None:
    reader, writer = await _handshake()
    writer.write(_frame(json.dumps(_LONG).encode()))
    with suppress(TimeoutError):
        async with asyncio.timeout(15):
            while await reader.read(65536):
                pass
    writer.close()


async def _silent_peer() -> None:
    _, writer = await _handshake()
    await asyncio.sleep(15)
    writer.close()


async def _large_frame() -> None:
    reader, writer = await _handshake()
    writer.write(_frame(b'{"type":"' + b"x" * 10_000_000 + b'"}'))
    await writer.drain()
    await reader.read(65536)
    writer.close()


async def _bad_utf8() -> None:
    reader, writer = await _handshake()
    writer.write(_frame(b'{"type":"\xff\xfe\xc0"}'))
    await reader.read(65536)
    writer.close()


async def _bomb() -> None:
    reader, writer = await _handshake(deflate=True)
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(b" " * 200_000_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    writer.write(_frame(bomb.removesuffix(b"\x00\x00\xff\xff"), first=0xC1))
    await writer.drain()
    await reader.read(65536)
    writer.close()


async def _noise() -> None:
    reader, writer = await _handshake()
    for _ in range(200):
        writer.write(_frame(random.randbytes(random.randrange(1, 400)), first=random.choice((0x81, 0x82, 0x01, 0x89))))
        await writer.drain()
    await reader.read(65536)
    writer.close()


if __name__ == "__main__":
    main()
