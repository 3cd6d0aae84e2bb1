"""Measures a running node from outside, over its public WebSocket; prints one JSON object.

Run by ``tests.benchmarks`` with the node's environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from asgiref.sync import sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

from nodes.models import ServedModel  # noqa: E402
from settlement.demonstration import User  # noqa: E402
from settlement.host_chain import host_chain  # noqa: E402
from settlement.models import Checkpoint  # noqa: E402
from tests.benchmarks.raw_ctranslate2 import measure  # noqa: E402

ROUNDS = 5
TOKENS = 200
CLAIM_ROUNDS = 5
PROMPT = "Write a very long story about a lighthouse keeper who befriends a whale."


def main() -> None:
    model = ServedModel.objects.get(is_default=True)
    raw, served, first = [], [], []
    for _ in range(ROUNDS):
        raw.append(measure(Path(model.path), max_tokens=TOKENS, prompt=PROMPT).tokens_per_second)
        rate, first_token = asyncio.run(_stream())
        served.append(rate)
        first.append(first_token)
    latencies = [asyncio.run(_claim_latency()) for _ in range(CLAIM_ROUNDS)]
    ratios = [ours / theirs for ours, theirs in zip(served, raw, strict=True)]
    figures = {
        "raw CTranslate2, one stream, tokens/s": statistics.median(raw),
        "WebSocket, one stream, tokens/s": statistics.median(served),
        "one WebSocket stream / raw CTranslate2": statistics.median(ratios),
        "one WebSocket stream / raw CTranslate2, worst round": min(ratios),
        "time to first token over WebSocket, s": statistics.median(first),
        "100th token to confirmed event, s": statistics.median(latencies),
        "100th token to confirmed event, slowest, s": max(latencies),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


async def _stream() -> tuple[float, float]:
    """Tokens per second from prompt to end, and seconds to the first token."""
    async with connect(_address()) as socket:
        started = time.perf_counter()
        await socket.send(json.dumps(_prompt(max_tokens=TOKENS)))
        first = 0.0
        async for raw in socket:
            frame = json.loads(raw)
            if frame["type"] == "stream_chunk" and frame["tokens"] and not first:
                first = time.perf_counter() - started
            if frame["type"] == "stream_end":
                return frame["tokens_used"] / (time.perf_counter() - started), first
    raise SystemExit("the stream broke off")


async def _claim_latency() -> float:
    """Seconds from the frame with the 100th token of a job to its confirmed claim."""
    job_id = await sync_to_async(User(host_chain()).open_job)()
    async with connect(_address()) as socket:
        counted, reached = 0, 0.0
        while not reached:
            await socket.send(json.dumps(_prompt(max_tokens=120, job_id=job_id)))
            async for raw in socket:
                frame = json.loads(raw)
                counted += frame.get("tokens", 0)
                if counted >= 100 and not reached:
                    reached = time.time()
                if frame["type"] == "stream_end":
                    break
        confirmed = None
        while confirmed is None:
            await asyncio.sleep(0.05)
            confirmed = await sync_to_async(_confirmed_at)(job_id)
        await socket.send(json.dumps({"type": "session_end"}))
        await socket.recv()
    return confirmed - reached


def _confirmed_at(job_id: int) -> float | None:
    row = Checkpoint.objects.paid().filter(session__job_id=job_id).order_by("id").first()
    return row.confirmed_at.timestamp() if row and row.confirmed_at else None


def _address() -> str:
    return settings.ENVIRONMENT.local_url.replace("http", "ws", 1) + "/v1/ws"


def _prompt(*, max_tokens: int, job_id: int | None = None) -> dict[str, object]:
    request = {
        "model": "default",
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "temperature": 0.8 if job_id else 0,
        "stream": True,
    }
    if job_id is not None:
        request["job_id"] = job_id
    return {"type": "inference", "id": "bench", "request": request}


if __name__ == "__main__":
    main()
