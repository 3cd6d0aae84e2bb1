"""A JSON-RPC node that answers by a script: a real HTTP server on a loopback port.

Each method has a list of steps; every request uses up one and the last one stays. A step is a JSON
value, a function of the parameters, a ``NodeError`` (a JSON-RPC error) or ``AWAY`` (the connection
is cut without an answer, of a whole batch if it is in one). Without a script it is an empty chain that
accepts every transaction. ``batches`` tells whether it takes several requests at once.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from eth_utils.crypto import keccak

CHAIN_ID = 31337


@dataclass(frozen=True)
class NodeError:
    """What the node refuses with."""

    message: str
    code: int = -32000
    data: str | None = None


class _Away:
    """The node does not answer."""


AWAY = _Away()


def block(number: int = 1, *, base_fee: int = 10**9, branch: int = 0) -> dict[str, Any]:
    """A block as ``eth_getBlockByNumber`` shows it; ``branch`` tells two of one height apart."""
    return {
        "number": hex(number),
        "hash": block_hash(number, branch=branch),
        "timestamp": hex(1_800_000_000 + number),
        "baseFeePerGas": hex(base_fee),
        "transactions": [],
    }


def block_hash(number: int, *, branch: int = 0) -> str:
    return "0x" + keccak(text=f"block {number} of branch {branch}").hex()


def transaction_hash(raw: str) -> str:
    return "0x" + keccak(hexstr=raw).hex()


def receipt(tx_hash: str, *, number: int = 1, status: int = 1, branch: int = 0) -> dict[str, Any]:
    return {
        "transactionHash": tx_hash,
        "blockNumber": hex(number),
        "blockHash": block_hash(number, branch=branch),
        "status": hex(status),
        "gasUsed": "0x5208",
        "effectiveGasPrice": "0x3b9aca00",
        "logs": [],
    }


class ScriptedRpc:
    """Serves until the ``with`` block ends. ``calls`` holds every request as (method, parameters)."""

    def __init__(self, *, batches: bool = True) -> None:
        self.batches = batches
        self.calls: list[tuple[str, list[Any]]] = []
        self._lock = threading.Lock()
        self._script: dict[str, deque[Any]] = {}
        self.on("eth_chainId", hex(CHAIN_ID))
        self.on("eth_getTransactionCount", "0x0")
        self.on("eth_call", "0x")
        self.on("eth_estimateGas", hex(100_000))
        self.on("eth_maxPriorityFeePerGas", hex(10**6))
        self.on("eth_getBlockByNumber", block())
        self.on("eth_getTransactionReceipt", None)
        self.on("eth_sendRawTransaction", lambda params: transaction_hash(params[0]))

    def on(self, method: str, *steps: Any) -> None:
        """Replace the script of a method."""
        with self._lock:
            self._script[method] = deque(steps)

    def sent(self) -> list[str]:
        """The raw transactions that reached the node, in order, repetitions included."""
        return [params[0] for method, params in self.calls if method == "eth_sendRawTransaction"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, method: str, params: list[Any]) -> Any:
        with self._lock:
            self.calls.append((method, params))
            steps = self._script.get(method)
            if not steps:
                return NodeError(f"the method {method} does not exist", -32601)
            return steps.popleft() if len(steps) > 1 else steps[0]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | _Away:
        step = self._next(request["method"], request["params"])
        if callable(step):
            step = step(request["params"])
        if isinstance(step, _Away):
            return step
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        if isinstance(step, NodeError):
            answer["error"] = {"code": step.code, "message": step.message}
            if step.data is not None:
                answer["error"]["data"] = step.data
        else:
            answer["result"] = step
        return answer

    def _answers(self, asked: Any) -> Any:
        """To one request or to a batch; ``AWAY`` if any of them meets it."""
        if not isinstance(asked, list):
            return self._answer(asked)
        if not self.batches:
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "batches are not supported"}}
        answers = [self._answer(request) for request in asked]
        return AWAY if any(answer is AWAY for answer in answers) else answers

    def _handler(peer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - self is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = peer._answers(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if answer is AWAY:
                    self.close_connection = True
                    return
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        return Handler
