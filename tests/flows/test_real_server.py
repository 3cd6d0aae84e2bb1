"""The web process with real sockets: dropped clients are billed exactly, text arrives byte by byte as generated."""

from __future__ import annotations

import json
import re
import socket as sockets
from collections.abc import Iterator

import pytest

from tests.flows.clients import text_of
from tests.flows.flow import prompt_body
from tests.flows.node import Node, drop_node, frames_until, make_node, wait_for

TEXT = "Zürich → 東京 👩‍👩‍👧 𝄞 "
HELD = 40


@pytest.fixture
def node(node_anvil: str) -> Iterator[Node]:
    node = make_node(node_anvil, text=TEXT, hold_after=HELD)
    node.start("web")
    yield node
    drop_node(node)


def request_of(body: dict, port: int) -> sockets.socket:
    """A raw HTTP request whose connection the test holds."""
    raw = json.dumps(body).encode()
    lines = ("POST /v1/inference HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(raw)}")
    head = "\r\n".join((*lines, "", ""))
    connection = sockets.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode() + raw)
    return connection


def test_clients_that_drop_are_billed_exactly_and_leave_no_traceback(node: Node):
    world = node.world.world
    job_id = world.open_usdc()
    billed = 0
    for way in ("json", "sse", "ws", "sse with a reset", "sse"):
        if way == "ws":
            with node.socket() as socket:
                socket.send(json.dumps({"type": "inference", "request": prompt_body(500, job_id=job_id)}))
                frames: list[dict] = []
                while sum(frame.get("tokens", 0) for frame in frames) < HELD:
                    frames += frames_until(socket, "stream_chunk", "connected")
                socket.socket.shutdown(sockets.SHUT_RDWR)
        else:
            connection = request_of(prompt_body(500, job_id=job_id, stream=way != "json"), node.port)
            if way == "json":
                wait_for(lambda due=billed + HELD: node.tracked() == due, "the tokens that the engine holds after")
            else:
                received = b""
                while sum(int(count) for count in re.findall(rb'"tokens": (\d+)', received)) < HELD:
                    received += connection.recv(65536)
            if way == "sse with a reset":
                connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        billed += HELD
        wait_for(lambda due=billed: node.running() == 0 and node.tracked() == due, f"the books after {way}")
    states = node.rows("SELECT DISTINCT state, completion_tokens FROM jobs_inferencerequest")
    assert states == [("cancelled", HELD)]
    # The one slot of the engine is free again, and what fits below the pause is answered whole.
    answer = node.post(prompt_body(HELD - 1, job_id=job_id))
    assert answer.json()["tokens_used"] == HELD - 1
    assert node.stop("web") == 0
    assert "Traceback" not in node.log("web"), node.log("web")
    assert "Error" not in node.log("web"), node.log("web")


def test_text_of_many_bytes_a_character_arrives_unchanged_over_real_sockets(node: Node):
    wanted = TEXT[:18]
    tokens = len(wanted.encode())
    assert tokens < HELD
    answer = node.post(prompt_body(tokens))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["content"].encode() == wanted.encode()
    streamed = node.post(prompt_body(tokens, stream=True))
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [json.loads(part[6:]) for part in streamed.content.decode().split("\n\n") if part.startswith("data: {")]
    assert text_of(events).encode() == wanted.encode()
    with node.socket() as socket:
        socket.send(json.dumps({"type": "inference", "request": prompt_body(tokens)}))
        assert text_of(frames_until(socket, "stream_end")).encode() == wanted.encode()
        socket.send(json.dumps({"type": "session_init", "session_id": "a chat"}))
        frames_until(socket, "session_init_ack")
        socket.send(json.dumps({"type": "prompt", "request": prompt_body(tokens)}))
        assert text_of(frames_until(socket, "stream_end")).encode() == wanted.encode()
