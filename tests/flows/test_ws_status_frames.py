"""What a client is told over its socket about the claims of its session, while settlement makes them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from fabstir_site.serving import SOCKETS
from jobs import sockets
from nodes.database import in_database_thread
from settlement import checkpoints, sealing
from settlement.models import Checkpoint
from settlement.progress import CheckpointProgressFeed
from tests.flows.clients import Socket
from tests.flows.flow import Flow


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_LOOK_AFTER_SECONDS", 0.02)


async def prompted(socket: Socket, job: int, *, tokens: int) -> None:
    await socket.ask({"type": "session_init", "id": "i", "session_id": str(job)})
    await socket.ask({"type": "prompt", "id": "p", "prompt": "Count.", "max_tokens": tokens})


async def told(socket: Socket, *kinds: str) -> list[dict[str, Any]]:
    """Frames until all of ``kinds`` have come."""
    frames: list[dict[str, Any]] = []
    while not set(kinds) <= {frame["type"] for frame in frames}:
        frames.append(await socket.frame())
    return frames


def test_a_client_is_told_when_its_checkpoint_and_proof_are_submitted_and_its_job_completed(flow: Flow):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket, flow.socket() as other:
            await prompted(socket, job, tokens=150)
            await in_database_thread(flow.drive)()
            frames = await told(socket, "checkpoint_submitted", "proof_submitted", "session_status")
            await socket.send({"type": "session_end", "id": "e"})
            frames += await socket.until("session_end_ack")
            await in_database_thread(flow.drive)()
            frames += await told(socket, "session_completed")
            assert other.waiting() == 0
            return frames

    frames = flow.run(play())
    first = Checkpoint.objects.get(index=0)
    assert bytes(first.proof or b"")
    by_kind = {frame["type"]: frame for frame in reversed(frames)}
    assert by_kind["checkpoint_submitted"]["checkpoint_index"] == 0
    proof = by_kind["proof_submitted"]
    assert (proof["proof_id"], proof["size_bytes"]) == (first.proof_hash, len(bytes(first.proof or b"")))
    status = [frame for frame in frames if frame["type"] == "session_status"][-1]
    assert status["checkpoint"] == {"status": "confirmed", "checkpoint_index": 0}
    assert status["proof"]["proof_id"] == first.proof_hash
    assert by_kind["session_completed"]["tokens_claimed"] == "150"
    news = [frame for frame in frames if frame["type"].endswith(("_submitted", "_status", "_completed"))]
    assert {frame["session_id"] for frame in news} == {str(job)}
    assert all(isinstance(frame["timestamp"], int) for frame in news)
    assert not any(frame["type"] == "error" for frame in frames)
    assert len([frame for frame in news if frame["type"] == "checkpoint_submitted"]) == 1


def test_what_was_before_the_socket_came_is_no_news(flow: Flow):
    job = flow.world.open_usdc()
    flow.ask("http_json", tokens=150, job_id=job)
    flow.drive()

    async def play() -> int:
        async with flow.socket() as socket:
            await socket.ask({"type": "session_init", "id": "i", "session_id": str(job)})
            await asyncio.sleep(0.2)
            return socket.waiting()

    assert flow.run(play()) == 0


def test_a_claim_that_an_operator_holds_is_told_with_its_reason(flow: Flow):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await prompted(socket, job, tokens=150)
            await in_database_thread(_hold)(flow)
            frames = await told(socket, "session_status")
            while frames[-1]["checkpoint"]["status"] == "pending":
                frames += await told(socket, "session_status")
            return frames

    status = flow.run(play())[-1]
    assert status["checkpoint"] == {"status": "paused", "checkpoint_index": 0, "error": "looked into"}


def test_all_sessions_are_asked_for_in_one_query_and_without_their_proofs(flow: Flow):
    jobs = [flow.world.open_usdc() for _ in range(3)]
    for job in jobs:
        flow.ask("http_json", tokens=150, job_id=job)
    flow.drive()
    ids = [flow.session(job).pk for job in jobs]
    with CaptureQueriesContext(connection) as queries:
        read = CheckpointProgressFeed().read([*ids, 10**6])
    assert len(queries) == 1
    assert '"proof",' not in queries[0]["sql"]
    assert set(read) == set(ids)
    assert {checkpoint.status for each in read.values() for checkpoint in each.checkpoints} == {"confirmed"}


def test_a_process_without_bound_sessions_asks_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    class Watched(CheckpointProgressFeed):
        def read(self, session_ids: Any) -> Any:
            asked.append(session_ids)
            return super().read(session_ids)

    monkeypatch.setattr(SOCKETS, "feed", Watched())
    job = flow.world.open_usdc()

    async def play() -> None:
        async with flow.socket() as socket:
            await socket.ask({"type": "prompt", "id": "p", "prompt": "Count.", "max_tokens": 5})
            await asyncio.sleep(0.1)
            assert asked == []
            await socket.ask({"type": "session_init", "id": "i", "session_id": str(job)})
            await asyncio.sleep(0.1)
        assert asked

    flow.run(play())
    assert not SOCKETS._bound


def _hold(flow: Flow) -> None:
    while not sealing.seal_due(flow.chain):
        flow.chain_world.clock.advance(2)
    checkpoints.hold(Checkpoint.objects.get(), reason="looked into")
