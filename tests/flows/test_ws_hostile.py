"""Sockets of clients that are broken or mean, at the real web process: it lives, and others are answered."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.flows.flow import prompt_body
from tests.flows.fuzz import Fuzzer
from tests.flows.node import Node, drop_node, make_node, wait_for
from tests.flows.raw_socket import CLOSE, PONG, TEXT, RawSocket

MESSAGE_BYTES = 1024 * 1024
SLOWLY = 0.002


@pytest.fixture(scope="module")
def node(anvil_of_module: str) -> Iterator[Node]:
    node = make_node(anvil_of_module, text="abcdefghij", context_length=30_000, replicas=4, seconds_per_token=SLOWLY)
    node.environ |= {
        "FABSTIR_WS_SLOW_READER_SECONDS": "1",
        "FABSTIR_WS_PING_SECONDS": "1",
        "FABSTIR_WS_MESSAGES_PER_SECOND": "100000",
        "FABSTIR_MAX_COMPLETION_TOKENS": "20000",
        "FABSTIR_WS_CONNECTIONS_PER_ADDRESS": "40",
    }
    try:
        node.start("web")
        yield node
    finally:
        drop_node(node)


@pytest.fixture(autouse=True)
def _lives(node: Node) -> Iterator[None]:
    """After each of them a good request is answered, and the process is the one that it was."""
    process = node.processes["web"].pid
    yield
    wait_for(lambda: _served(node), "a place for a good request")
    assert node.processes["web"].poll() is None
    assert node.processes["web"].pid == process
    assert "Traceback" not in node.log("web"), node.log("web")


def _served(node: Node) -> bool:
    """``False`` while the sockets of the test before still count."""
    try:
        Fuzzer(node.port, seed=0).good()
    except AssertionError as refused:
        if "was closed" in str(refused):
            return False
        raise
    return True


def asked(tokens: int, **fields: object) -> bytes:
    return json.dumps({"type": "inference", "request": prompt_body(tokens), **fields}).encode()


def test_a_reader_that_never_reads_is_dropped_its_generation_stopped_and_billed(node: Node):
    requests = len(node.rows("SELECT id FROM jobs_inferencerequest"))
    with RawSocket(node.port, receive_buffer=4096) as slow:
        # Every frame repeats the id: soon nothing fits between server and reader any more.
        slow.send(asked(15_000, id="x" * 1000))
        wait_for(lambda: node.running() == 1, "the generation")
        Fuzzer(node.port, seed=0).good()
        wait_for(lambda: _sends(slow) and node.running() == 0, "the end of the slow reader's generation")
    rows = node.rows(
        "SELECT r.state, r.completion_tokens, (SELECT coalesce(sum(u.count), 0) FROM jobs_tokenusage u "
        "WHERE u.request_id = r.id) FROM jobs_inferencerequest r WHERE r.max_tokens = 15000"
    )
    [(state, counted, billed)] = rows
    assert state == "cancelled"
    assert 0 < counted == billed < 15_000
    assert len(node.rows("SELECT id FROM jobs_inferencerequest")) == requests + 2


def _sends(slow: RawSocket) -> bool:
    """A sign of life, so that it is not for its silence that it is dropped. ``True`` whether or not it arrives."""
    with suppress(OSError):
        slow.send(b"", opcode=PONG)
    return True


def test_a_client_that_breaks_the_protocol_amid_its_answer_is_given_up_and_leaves_nothing(node: Node):
    with RawSocket(node.port) as broken:
        broken.send(asked(14_000))
        wait_for(lambda: node.running() == 1, "the generation")
        broken.send(b"x", rsv=7)
        assert broken.close_code() in (1002, 0)
    wait_for(lambda: node.running() == 0, "the end of its generation")
    rows = node.rows("SELECT state FROM jobs_inferencerequest WHERE max_tokens = 14000")
    assert rows == [("cancelled",)]


def test_an_address_with_too_many_sockets_is_told_by_a_code_and_served_again_when_some_are_gone(node: Node):
    with ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(RawSocket(node.port))
        with RawSocket(node.port) as surplus:
            assert surplus.close_code() == 1013
    wait_for(lambda: _is_let_in(node), "room for another socket")


def _is_let_in(node: Node) -> bool:
    with node.socket() as socket:
        return json.loads(socket.recv(10))["type"] == "connected"


def test_a_flood_that_reads_no_answers_does_not_pile_up_in_the_host(node: Node):
    web = psutil.Process(node.processes["web"].pid)
    before = web.memory_info().rss
    with RawSocket(node.port, receive_buffer=4096) as flood:
        flood.connection.settimeout(1)
        message = json.dumps({"type": "nonsense", "id": "x" * 1000}).encode()
        sent = 0
        try:
            while sent < 200 * 1024 * 1024:
                flood.send(message)
                sent += len(message)
        except OSError:
            pass  # the host reads no more, or has hung up
    assert sent < 100 * 1024 * 1024
    assert web.memory_info().rss - before < 50 * 1024 * 1024


def test_a_peer_that_answers_no_ping_is_dropped(node: Node):
    with RawSocket(node.port) as dead:
        assert dead.close_code() == 0
    with node.socket() as alive:
        json.loads(alive.recv(10))
        alive.send(asked(5).decode())
        assert json.loads(alive.recv(10))["type"] == "stream_chunk"


@pytest.mark.parametrize("fragments", [1, 100])
def test_a_message_of_ten_megabytes_is_refused_with_1009(node: Node, fragments: int):
    size = 10_000_000 // fragments
    with RawSocket(node.port) as large:
        try:
            for number in range(fragments):
                large.send(b"x" * size, opcode=TEXT if number == 0 else 0, fin=number == fragments - 1)
        except OSError:
            pass  # refused before it was sent to its end
        assert large.close_code() in (1009, 0)


def test_a_message_of_the_largest_size_is_read_and_one_byte_more_is_not(node: Node):
    with RawSocket(node.port) as large:
        large.send(b'"' + b"x" * (MESSAGE_BYTES - 2) + b'"')
        kinds = [json.loads(large.receive()[1]) for _ in range(2)]
        assert [frame["type"] for frame in kinds] == ["connected", "error"]
        assert kinds[1]["code"] == "invalid_request"
    with RawSocket(node.port) as larger:
        larger.send(b"x" * (MESSAGE_BYTES + 1))
        assert larger.close_code() == 1009


def test_text_that_is_no_utf_8_ends_the_socket_with_1007(node: Node):
    with RawSocket(node.port) as bad:
        bad.send(b'{"type": "ping\xff\xfe"}')
        assert bad.close_code() == 1007


def test_compression_is_not_agreed_to_and_a_deflate_bomb_is_a_protocol_error(node: Node):
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeezed.compress(b"[" * 500_000_000) + squeezed.flush(zlib.Z_SYNC_FLUSH)
    with RawSocket(node.port, headers=(offer,)) as socket:
        assert "permessage-deflate" not in socket.answer.lower()
        socket.send(bomb[:-4], rsv=4)
        assert socket.close_code() == 1002


def test_a_message_in_a_thousand_pieces_is_a_message(node: Node):
    message = asked(5)
    pieces = [message[start : start + 1] for start in range(len(message))]
    pieces += [b" "] * (1000 - len(pieces))
    with RawSocket(node.port) as socket:
        for number, piece in enumerate(pieces):
            socket.send(piece, opcode=TEXT if number == 0 else 0, fin=number == len(pieces) - 1)
            if number % 100 == 50:
                socket.send(b"", opcode=10)
        frames = []
        while not frames or frames[-1]["type"] != "stream_end":
            opcode, payload = socket.receive()
            assert opcode != CLOSE
            if opcode == TEXT:
                frames.append(json.loads(payload))
    assert frames[-1]["tokens_used"] == 5


def test_two_thousand_frames_from_a_seed_break_nothing(node: Node):
    fuzzer = Fuzzer(node.port, seed=20_261_122)
    fuzzer.play(2000)
    assert fuzzer.counts["good"] == 20
    assert min(fuzzer.counts[kind] for kind in ("message", "mutated", "rubbish", "fragments", "broken")) > 50
    wait_for(lambda: node.running() == 0, "the generations of the fuzzed prompts")
