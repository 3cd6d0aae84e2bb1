"""Frames that nobody would send, from a seed, at the WebSocket of a running node.

``python -m tests.flows.fuzz --port 8080 --frames 100000`` plays them by hand; set
``FABSTIR_WS_MESSAGES_PER_SECOND`` high on that node, or most of them meet the limit instead.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.flows.raw_socket import BINARY, CLOSE, PING, PONG, TEXT, RawSocket

GOOD = {"type": "inference", "id": "good", "request": {"model": "default", "prompt": "Hi.", "max_tokens": 3}}
_PAYLOAD = {
    "ephPubHex": "02" + "11" * 32,
    "saltHex": "",
    "nonceHex": "22" * 24,
    "ciphertextHex": "33" * 40,
    "signatureHex": "44" * 65,
    "aadHex": "",
}
_TEMPLATES: tuple[dict[str, Any], ...] = (
    GOOD,
    {"type": "session_init", "id": 1, "chain_id": 31337, "session_id": "77", "jobId": "77"},
    {"type": "prompt", "id": "p", "prompt": "Hi.", "max_tokens": 2, "request": {"max_tokens": 2}},
    {"type": "encrypted_session_init", "session_id": "7", "payload": _PAYLOAD},
    {"type": "encrypted_message", "session_id": "7", "payload": _PAYLOAD, "id": "e"},
    {"type": "stream_cancel", "session_id": "7"},
    {"type": "session_end"},
    {"type": "ping"},
)
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 2**256, 1e308, "", "n", "123n", "\ud800", "\x00", "x" * 5000, [], {}, [[]], {"type": 1},
)  # fmt: skip


class Fuzzer:
    """Plays ``frames`` frames of ``seed`` at a node, a good request after every ``every`` of them."""

    def __init__(self, port: int, *, seed: int, every: int = 100) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._every = every
        self._socket: RawSocket | None = None
        self.counts: Counter[str] = Counter()

    def play(self, frames: int) -> None:
        for number in range(1, frames + 1):
            self._send_one()
            if number % self._every == 0:
                self.good()
        self._hang_up()

    def good(self) -> None:
        """A request on a socket of its own, which must be answered."""
        with RawSocket(self._port) as good:
            good.send(json.dumps(GOOD).encode())
            while True:
                opcode, payload = good.receive()
                assert opcode != CLOSE, "a good request's socket was closed"
                if opcode == TEXT and json.loads(payload)["type"] == "stream_end":
                    assert json.loads(payload)["reason"] == "complete", payload
                    self.counts["good"] += 1
                    return

    def _send_one(self) -> None:
        if self._socket is None:
            self._socket = RawSocket(self._port)
            self.counts["sockets"] += 1
        weights = {self._message: 12, self._mutated: 8, self._rubbish: 3, self._fragments: 2, self._broken: 2}
        [kind] = self._random.choices([*weights], [*weights.values()])
        self.counts[kind.__name__.removeprefix("_")] += 1
        try:
            kind(self._socket)
            alive = self._socket.drain()
        except OSError:
            alive = False
        if not alive or self._random.random() < 0.01:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.connection.close()
            self._socket = None

    # Kinds of frames ------------------------------------------------------------------------------

    def _message(self, socket: RawSocket) -> None:
        """JSON of a known message, with one or more fields replaced or missing."""
        message = json.loads(json.dumps(self._random.choice(_TEMPLATES)))
        for _ in range(self._random.randrange(4)):
            target: Any = message
            if self._random.random() < 0.5:
                nested = [value for value in message.values() if isinstance(value, dict)]
                target = self._random.choice(nested) if nested else message
            name = self._random.choice([*target, "job_id", "temperature"]) if target else "id"
            if self._random.random() < 0.3:
                target.pop(name, None)
            else:
                target[name] = copy.deepcopy(self._random.choice(_VALUES))
        if isinstance(message.get("request"), dict):
            # What is valid after all shall not generate for long.
            message["request"]["max_tokens"] = self._random.choice([1, 2, "3", -1])
        socket.send(json.dumps(message).encode())

    def _mutated(self, socket: RawSocket) -> None:
        """Bytes of a known message, some of them changed: mostly neither JSON nor UTF-8."""
        data = bytearray(json.dumps({**self._random.choice(_TEMPLATES), "max_tokens": 1}).encode())
        for _ in range(self._random.randrange(1, 6)):
            data[self._random.randrange(len(data))] = self._random.choice(b'{}[]":,\\0aZ\x7f')
        socket.send(bytes(data), opcode=self._random.choice([TEXT, BINARY]))

    def _rubbish(self, socket: RawSocket) -> None:
        size = self._random.choice([0, 1, 2, 125, 126, 1000, 70_000])
        depth = self._random.choice([0, 0, 50_000])
        data = b"[" * depth if depth else self._random.randbytes(size)
        socket.send(data, opcode=self._random.choice([TEXT, BINARY]))

    def _fragments(self, socket: RawSocket) -> None:
        """One message in pieces, with control frames between them."""
        data = json.dumps(GOOD).encode()
        cuts = sorted(self._random.sample(range(1, len(data)), 3))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            socket.send(piece, opcode=TEXT if number == 0 else 0, fin=last and self._random.random() < 0.9)
            if self._random.random() < 0.3:
                socket.send(b"are you there", opcode=self._random.choice([PING, PONG]))

    def _broken(self, socket: RawSocket) -> None:
        """A frame against the protocol: reserved bits or opcodes, unmasked, a close with nonsense in it."""
        breaks: list[Callable[[], None]] = [
            lambda: socket.send(b"x", rsv=self._random.randrange(1, 8)),
            lambda: socket.send(b"x", opcode=self._random.choice([3, 4, 7, 11, 15])),
            lambda: socket.send(b"x", masked=False),
            lambda: socket.send(b"x" * 200, opcode=PING),
            lambda: socket.send(b"x", opcode=0),
            lambda: socket.send(self._random.randbytes(self._random.randrange(5)), opcode=CLOSE),
            lambda: socket.connection.sendall(self._random.randbytes(self._random.randrange(1, 60))),
            lambda: socket.connection.sendall(b"\x81\xff" + b"\xff" * 12),
        ]
        self._random.choice(breaks)()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--frames", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    fuzzer = Fuzzer(chosen.port, seed=chosen.seed)
    began = time.monotonic()
    fuzzer.play(chosen.frames)
    sys.stdout.write(f"{chosen.frames} frames in {time.monotonic() - began:.0f} s: {dict(fuzzer.counts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
