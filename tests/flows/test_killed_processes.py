"""Real processes killed with SIGKILL: counts survive, a lost window is the user's gain, every token is claimed once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from jobs.metering import WINDOW_TOKENS
from tests.flows.flow import prompt_body
from tests.flows.node import Node, drop_node, frames_until, make_node, wait_for


@pytest.fixture
def node(node_anvil: str) -> Iterator[Node]:
    node = make_node(node_anvil, seconds_per_token=0.002, replicas=2)
    yield node
    drop_node(node)


def test_counts_survive_a_killed_web_process(node: Node):
    """Mission 1, bug 2, at its hardest: what was counted must outlive more than the reply."""
    node.start("web")
    job_id = node.world.world.open_usdc()
    assert node.post(prompt_body(57, job_id=job_id)).json()["tokens_used"] == 57
    node.kill("web")
    assert node.tracked() == 57, "a reply that has ended is recorded before its last byte"
    node.start("web")
    counted = 57
    for tokens in (3, 30, 61):
        with node.socket() as socket:
            socket.send(json.dumps({"type": "inference", "request": prompt_body(2000, job_id=job_id)}))
            received = 0
            while received < tokens:
                received += frames_until(socket, "stream_chunk", "connected")[-1].get("tokens", 0)
            node.kill("web")
        recorded = node.tracked() - counted
        # Whatever else the engine had produced by then was never shown to anybody.
        assert received - WINDOW_TOKENS <= recorded
        counted += recorded
        node.start("web")
    # The engine gave its slots back: two prompts at once would wait for ever otherwise.
    assert node.post(prompt_body(19, job_id=job_id)).json()["tokens_used"] == 19
    assert node.tracked() == counted + 19


def test_every_token_is_claimed_once_though_workers_are_killed(node: Node):
    node.start("broker", "web", "worker", "beat")
    world = node.world.world
    job_id = world.open_usdc(deposit=10_000_000)
    states = "SELECT DISTINCT state FROM settlement_checkpoint"
    total = 0
    for round_ in range(3):
        total += node.post(prompt_body(130, job_id=job_id)).json()["tokens_used"]
        # Whatever the worker is doing at that moment: sealing, sending or confirming.
        wait_for(lambda: node.rows(states), "a checkpoint")
        node.kill("worker")
        assert node.tracked() == total, round_
        node.expire_leases()
        node.start("worker")
    with node.socket() as socket:
        socket.send(json.dumps({"type": "session_init", "session_id": f"{job_id}n"}))
        frames_until(socket, "session_init_ack")
        socket.send(json.dumps({"type": "session_end"}))
        frames_until(socket, "session_end_ack")
    ended = "SELECT state FROM jobs_session"
    told = "SELECT state, reason, retry_at FROM settlement_checkpoint UNION ALL SELECT state, reason, retry_at FROM %s"
    wait_for(
        lambda: node.rows(ended) == [("completed",)],
        lambda: f"the session's completion: {node.rows(told % 'settlement_transaction')}",
    )
    job = world.job(job_id)
    assert (job.tokens_used, job.withdrawn_by_host) == (total, total * 2000 * 9 // 10)
    ranges = node.rows("SELECT from_token, to_token, state FROM settlement_checkpoint ORDER BY from_token")
    assert [start for start, _, _ in ranges] == [0, *(end for _, end, _ in ranges[:-1])]
    assert ranges[-1][1] == total
    assert {state for _, _, state in ranges} == {"settled"}
