"""The engine of a whole node killed amid fifty streams: every client is told, every token counted, it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests
from websockets.asyncio.client import connect

from jobs.metering import WINDOW_TOKENS
from tests.site.conftest import Node, give_model

pytestmark = pytest.mark.timeout(400)

STREAMS = 50
_PATIENCE_SECONDS = 120


@dataclass
class Seen:
    """What one client got."""

    delivered: int = 0
    frames: list[dict] = field(default_factory=list)


async def _stream(port: int, number: int, seen: Seen, started: asyncio.Event) -> None:
    request = {"model": "default", "prompt": f"Count from {number} upwards.", "max_tokens": 600, "temperature": 0}
    async with connect(f"ws://127.0.0.1:{port}/v1/ws") as socket:
        request["request_id"] = f"stream-{number}"
        await socket.send(json.dumps({"type": "inference", "id": str(number), "request": request}))
        async for raw in socket:
            frame = json.loads(raw)
            if frame["type"] == "stream_chunk":
                seen.delivered += frame["tokens"]
                started.set()
            elif frame["type"] in ("error", "stream_end"):
                seen.frames.append(frame)
            if frame["type"] == "stream_end":
                return


def _engine_of(node: Node) -> psutil.Process:
    assert node.process is not None
    tree = psutil.Process(node.process.pid).children(recursive=True)
    [engine] = [process for process in tree if "jobs.inference.process" in " ".join(process.cmdline())]
    return engine


async def _kill_amid(node: Node) -> list[Seen]:
    seen = [Seen() for _ in range(STREAMS)]
    started = asyncio.Event()
    streams = [asyncio.ensure_future(_stream(node.port, n, each, started)) for n, each in enumerate(seen)]
    await asyncio.wait_for(started.wait(), _PATIENCE_SECONDS)
    while sum(each.delivered for each in seen) < 100:
        await asyncio.sleep(0.01)
    os.kill(_engine_of(node).pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*streams), _PATIENCE_SECONDS)
    return seen


def _counted(data_dir: Path) -> dict[str, tuple[int, str]]:
    with sqlite3.connect(data_dir / "fabstir.sqlite3", timeout=20) as database:
        rows = database.execute("SELECT client_request_id, completion_tokens, state FROM jobs_inferencerequest")
        return {name: (tokens, state) for name, tokens, state in rows}


def test_every_delivered_token_is_counted_when_the_engine_is_killed_and_the_node_serves_again(
    node: Callable[..., Node], data_dir: Path, default_model_path: Path
) -> None:
    give_model(data_dir, default_model_path)
    served = node()
    served.start()
    served.wait_until_ready()
    killed = _engine_of(served).pid
    seen = asyncio.run(_kill_amid(served))

    cut_off = [each for each in seen if each.frames[0]["type"] == "error"]
    assert cut_off, "nobody was cut off: the engine was killed too late"
    for each in cut_off:
        error, end = each.frames
        assert (error["code"], end["reason"]) == ("service_unavailable", "error"), each.frames
        assert "Try again" in error["message"]
    counted = _counted(data_dir)
    assert all(state != "running" for _, state in counted.values()), counted
    for number, each in enumerate(seen):
        recorded = counted.get(f"stream-{number}", (0, ""))[0]
        assert each.delivered <= recorded <= each.delivered + WINDOW_TOKENS, (number, each, recorded)

    deadline = time.monotonic() + _PATIENCE_SECONDS
    body = {"model": "default", "prompt": "Hello", "max_tokens": 5}
    while (answer := requests.post(f"http://127.0.0.1:{served.port}/v1/inference", json=body, timeout=60)).status_code:
        if answer.status_code == 200:
            break
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    assert answer.json()["tokens_used"] >= 1
    assert _engine_of(served).pid != killed
    told = f"{STREAMS} streams, {len(cut_off)} cut off, {sum(each.delivered for each in seen)} tokens delivered"
    sys.stdout.write(told + "\n")
