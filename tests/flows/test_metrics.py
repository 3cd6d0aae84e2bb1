"""``/metrics`` of a running node: two web processes, real requests, one set of figures."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from settlement.chain import local
from tests.flows.node import Node, drop_node, frames_until, make_node, wait_for


@pytest.fixture
def node(node_anvil: str) -> Iterator[Node]:
    # Slow enough for several chunks: one that holds all tokens has no gaps.
    made = make_node(node_anvil, tokens=20, seconds_per_token=0.01)
    made.start("broker", "web")
    yield made
    drop_node(made)


def second_web(node: Node) -> tuple[int, int]:
    """Another web process of the same node, on a port of its own; the ports of both."""
    first, second = node.port, local.free_port()
    node.processes["first web"] = node.processes.pop("web")
    node.port, node.environ["API_PORT"] = second, str(second)
    node.start("web")
    return first, second


def figures(port: int) -> dict[str, float]:
    """Sums by sample name, plus those by reason or code."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("fabstir_")
            reason = sample.labels.get("finished_reason") or sample.labels.get("code")
            for key in {name, f"{name} {reason}" if reason else name}:
                found[key] = found.get(key, 0) + sample.value
    return found


def test_each_web_process_shows_what_both_have_done(node: Node) -> None:
    first, second = second_web(node)
    body = {"model": "scripted", "prompt": "Count.", "max_tokens": 10}
    for port in (first, second, second):
        answer = requests.post(f"http://127.0.0.1:{port}/v1/inference", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
    refused = requests.post(f"http://127.0.0.1:{first}/v1/inference", json=body | {"model": "absent"}, timeout=60)
    assert refused.status_code == 404
    with node.socket() as socket:
        socket.send(json.dumps({"type": "inference", "request": body | {"max_tokens": 30}}))
        frames_until(socket, "stream_end")
        wait_for(lambda: figures(first)["request_success_total"] == 4, "the last request's figures")
        seen = figures(first)
        assert seen["ws_connections"] == 1
    wait_for(lambda: figures(first)["ws_connections"] == 0, "the socket's end")
    other = figures(second)
    assert {name: value for name, value in seen.items() if name != "ws_connections"} == {
        name: value for name, value in other.items() if name != "ws_connections"
    }
    # Three answers of ten tokens, and one of the twenty that the script has.
    assert seen["generation_tokens_total"] == 50
    assert (seen["request_success_total length"], seen["request_success_total stop"]) == (3, 1)
    assert seen["requests_refused_total model_not_found"] == 1
    assert seen["num_requests_running"] == seen["num_requests_waiting"] == 0
    assert seen["prompt_tokens_total"] == seen["request_prompt_tokens_sum"] == 4 * len("Count.")
    assert seen["request_generation_tokens_sum"] == 50
    for histogram in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert seen[f"{histogram}_seconds_count"] == 4
    assert seen["time_to_first_token_seconds_sum"] <= seen["e2e_request_latency_seconds_sum"]
    assert seen["inter_token_latency_seconds_count"] > 0
    assert seen["build_info"] == 1
