"""Twenty minutes at eight streams, after ten to warm up: whether memory or file descriptors of a running node grow.

Measures the node at ``FABSTIR_DATA_DIR`` with its environment; prints one JSON object. Growth is the slope
of a straight line through the resident memory after the warm-up, in percent of it per hour: under load, where
it goes up and down with the batches, and at rest, once a minute, when all streams have paused for some
seconds. Only the latter tells one percent from chance in so short a time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import django
import psutil

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from asgiref.sync import sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402
from websockets.asyncio.client import ClientConnection, connect  # noqa: E402

from settlement.demonstration import User  # noqa: E402
from settlement.host_chain import host_chain  # noqa: E402

STREAMS = 8
_SAMPLE_SECONDS = 5.0
# The engine gives memory back two seconds after the last batch.
REST_EVERY_SECONDS, REST_SECONDS = 60.0, 8.0
_TOLD_SAMPLES = 12
_MEBIBYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="after the warm-up")
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes of the same load before")
    chosen = parser.parse_args()
    figures = asyncio.run(_soak(60 * chosen.minutes, warm_up=60 * chosen.warm_up))
    sys.stdout.write(json.dumps(figures) + "\n")


def tree() -> dict[str, psutil.Process]:
    """The node's processes by a name that tells what each does."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("FABSTIR_DATA_DIR") == str(settings.ENVIRONMENT.data_dir)
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if mine and process.pid != os.getpid() and "benchmarks" not in command:
            names = ("jobs.inference.process", "manage.py web", "worker", "beat", "anvil", "valkey", "embedded")
            name = next((name for name in names if name in command), process.name())
            found[f"{name} {process.pid}"] = process
    return found


class Turns:
    """Lets prompts be sent, and has all streams pause between two of theirs."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._busy = 0

    @asynccontextmanager
    async def prompt(self) -> AsyncIterator[None]:
        await self._open.wait()
        self._busy += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    @asynccontextmanager
    async def rest(self) -> AsyncIterator[None]:
        self._open.clear()
        await self._quiet.wait()
        await asyncio.sleep(REST_SECONDS)
        yield
        self._open.set()


Samples = dict[str, list[tuple[float, int]]]


async def _soak(seconds: float, *, warm_up: float) -> dict[str, float]:
    until = time.monotonic() + warm_up + seconds
    turns = Turns()
    streams = [asyncio.ensure_future(_prompts(number, until, turns)) for number in range(STREAMS)]
    processes = tree()
    memory: Samples = {name: [] for name in processes}
    resting: Samples = {name: [] for name in processes}
    descriptors: dict[str, list[int]] = {name: [] for name in processes}
    started = rested = time.monotonic()
    while time.monotonic() < until:
        for name, process in processes.items():
            memory[name].append((time.monotonic() - started, process.memory_info().rss))
            descriptors[name].append(process.num_fds())
        if time.monotonic() - rested >= REST_EVERY_SECONDS:
            async with turns.rest():
                for name, process in processes.items():
                    resting[name].append((time.monotonic() - started, process.memory_info().rss))
            rested = time.monotonic()
            _tell(rested - started, {name: samples[-1][1] for name, samples in resting.items()}, when="at rest, ")
        if len(descriptors[name]) % _TOLD_SAMPLES == 1:
            _tell(time.monotonic() - started, {name: samples[-1][1] for name, samples in memory.items()})
        await asyncio.sleep(_SAMPLE_SECONDS)
    tokens = sum(await asyncio.gather(*streams))
    figures: dict[str, float] = {"minutes after warm-up": seconds / 60, "streams": STREAMS, "tokens": tokens}
    whole = [(rows[0][0], sum(rss for _, rss in rows)) for rows in zip(*memory.values(), strict=True)]
    for name, samples in {"whole tree": whole, **memory}.items():
        warm = [sample for sample in samples if sample[0] >= warm_up]
        figures[f"{name}: memory, MiB"] = statistics.fmean(rss for _, rss in warm) / _MEBIBYTE
        figures[f"{name}: growth, %/h"] = growth(warm)
    for name, samples in resting.items():
        warm = [sample for sample in samples if sample[0] >= warm_up]
        figures[f"{name}: memory at rest, MiB"] = statistics.fmean(rss for _, rss in warm) / _MEBIBYTE
        figures[f"{name}: growth at rest, %/h"] = growth(warm)
    for name, counts in descriptors.items():
        warm_counts = [count for count, (at, _) in zip(counts, memory[name], strict=True) if at >= warm_up]
        figures[f"{name}: file descriptors, first / last quarter's median"] = statistics.median(
            warm_counts[-len(warm_counts) // 4 :]
        ) - statistics.median(warm_counts[: len(warm_counts) // 4])
    return figures


def _tell(seconds: float, memory: dict[str, int], *, when: str = "") -> None:
    """The memory of each process, to standard error."""
    cells = ", ".join(f"{name.rsplit(' ', 1)[0]} {rss / _MEBIBYTE:.1f}" for name, rss in memory.items())
    sys.stderr.write(f"{seconds / 60:4.1f} min, {when}MiB: {cells}\n")


def growth(samples: list[tuple[float, int]]) -> float:
    """Percent of the mean per hour, of the straight line that fits (seconds, bytes) best."""
    slope, _ = statistics.linear_regression([at for at, _ in samples], [rss for _, rss in samples])
    return 100 * 3600 * slope / statistics.fmean(rss for _, rss in samples)


async def _prompts(number: int, until: float, turns: Turns) -> int:
    """One client after the other on its own job: sockets come and go, jobs are opened, claimed and ended."""
    tokens = 0
    for turn in itertools.count():
        if time.monotonic() >= until:
            return tokens
        job_id = await sync_to_async(User(host_chain()).open_job)()
        async with connect(settings.ENVIRONMENT.local_url.replace("http", "ws", 1) + "/v1/ws") as socket:
            for _ in range(4):
                async with turns.prompt():
                    tokens += await _answer(socket, f"Tell story {turn} of {number}.", job_id=job_id)
    return tokens


async def _answer(socket: ClientConnection, prompt: str, *, job_id: int) -> int:
    """The tokens of one answer."""
    request = {"model": "default", "prompt": prompt, "max_tokens": 120, "temperature": 0.7, "job_id": job_id}
    await socket.send(json.dumps({"type": "inference", "id": "soak", "request": request}))
    async for raw in socket:
        frame = json.loads(raw)
        if frame["type"] == "error":
            raise SystemExit(f"a prompt was refused: {frame}")
        if frame["type"] == "stream_end":
            return int(frame["tokens_used"])
    raise SystemExit("a WebSocket broke off")


if __name__ == "__main__":
    main()
