"""Whether settlement slows generation: gaps between tokens with claims in progress and without, in one run.

Measures a running node over its public WebSocket, with its environment; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from django.conf import settings  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

from jobs import metering, sessions  # noqa: E402
from jobs.models import DeliveryPath, InferenceRequest, RequestState, Session  # noqa: E402
from jobs.protocol import SessionReference  # noqa: E402
from jobs.spending import SpendingPolicy  # noqa: E402
from nodes.database import in_database_thread  # noqa: E402
from settlement.demonstration import User  # noqa: E402
from settlement.host_chain import host_chain  # noqa: E402
from settlement.job_lookup import ChainJobSource  # noqa: E402
from settlement.models import Checkpoint  # noqa: E402

ROUNDS = 6
TOKENS = 250
CLAIMING_JOBS = 10
TOKENS_PER_CLAIM = 110
PROMPT = "Write a very long story about a lighthouse keeper who befriends a whale."


def main() -> None:
    figures = asyncio.run(_measure())
    sys.stdout.write(json.dumps(figures) + "\n")


async def _measure() -> dict[str, float]:
    quiet: list[list[float]] = []
    claiming: list[list[float]] = []
    jobs = [await in_database_thread(_open_session)() for _ in range(CLAIMING_JOBS)]
    await _gaps()
    before = await in_database_thread(_confirmed)()
    for _ in range(ROUNDS):
        quiet.append(await _gaps())
        feeding = asyncio.ensure_future(_feed(jobs))
        claiming.append(await _gaps())
        feeding.cancel()
        await _settled(jobs)
    claims = await in_database_thread(_confirmed)() - before
    if not claims:
        raise SystemExit("no claim was made while the gaps were measured")
    ratios = [_p99(fed) / _p99(rested) for fed, rested in zip(claiming, quiet, strict=True)]
    without = _p99([gap for stream in quiet for gap in stream])
    with_claims = _p99([gap for stream in claiming for gap in stream])
    return {
        "gap between tokens, p99, no claims, ms": 1000 * without,
        "gap between tokens, p99, claims in progress, ms": 1000 * with_claims,
        "gap p99 with claims / without": with_claims / without,
        "gap p99 with claims / without, median of rounds": statistics.median(ratios),
        "claims confirmed meanwhile": float(claims),
    }


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _gaps() -> list[float]:
    """Seconds between the tokens of one stream."""
    request = {"model": "default", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    address = settings.ENVIRONMENT.local_url.replace("http", "ws", 1) + "/v1/ws"
    found: list[float] = []
    async with connect(address) as socket:
        await socket.send(json.dumps({"type": "inference", "id": "bench", "request": request}))
        last = 0.0
        async for raw in socket:
            frame = json.loads(raw)
            if frame["type"] == "stream_chunk" and frame["tokens"]:
                now = time.perf_counter()
                if last:
                    found += [(now - last) / frame["tokens"]] * frame["tokens"]
                last = now
            if frame["type"] == "stream_end":
                return found
    raise SystemExit("the stream broke off")


async def _feed(jobs: list[int]) -> None:
    """Another claim's worth of tokens for one job after the other, twice a second."""
    while True:
        for session_id in jobs:
            await in_database_thread(_count)(session_id)
            await asyncio.sleep(0.1)


async def _settled(jobs: list[int]) -> None:
    """Wait until nothing of the fed jobs is on its way."""
    deadline = time.monotonic() + 120
    while await in_database_thread(_unsettled)(jobs):
        if time.monotonic() > deadline:
            raise SystemExit("claims of the benchmark do not come through")
        await asyncio.sleep(0.2)


def _open_session() -> int:
    job = ChainJobSource()._find(User(host_chain()).open_job())
    assert job is not None
    return sessions.open_job_session(job, reference=SessionReference(job_id=job.job_id), policy=SpendingPolicy.OPEN).id


def _count(session_id: int) -> None:
    request = InferenceRequest.objects.create(
        session_id=session_id,
        path=DeliveryPath.HTTP_JSON,
        model="bench",
        max_tokens=TOKENS_PER_CLAIM,
        state=RequestState.RUNNING,
    )
    metering.record_usage(
        session_id=session_id, request_id=request.pk, count=TOKENS_PER_CLAIM, path=DeliveryPath.HTTP_JSON
    )
    InferenceRequest.objects.filter(pk=request.pk).update(state=RequestState.FINISHED, finished_at=request.created_at)


def _unsettled(jobs: list[int]) -> bool:
    rows = Session.objects.filter(pk__in=jobs)
    waiting = any(row.tokens_unsealed >= settings.ENVIRONMENT.checkpoint_threshold for row in rows)
    return waiting or Checkpoint.objects.unpaid().filter(session__in=jobs).exists()


def _confirmed() -> int:
    return Checkpoint.objects.paid().count()


if __name__ == "__main__":
    main()
