"""An RPC node that misbehaves on the wire: says what a test wants, byte by byte, and counts what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

CHAIN_ID = 31337


@dataclass
class Reply:
    """A raw HTTP answer; ``cut`` ends the connection instead, ``announced`` is a false Content-Length."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    announced: int | None = None


class Hold:
    """No answer until the peer ends."""


Behaviour = Callable[[Any], Any]
"""From the parsed request to a ``Reply``, ``Hold`` or a JSON value."""


class UnrulyPeer:
    """Serves until the ``with`` block ends. ``behave`` may be replaced at any time."""

    def __init__(self, *, chain_id: int = CHAIN_ID, head: int = 100) -> None:
        self.chain_id = chain_id
        self.head = head
        self.results: dict[str, Any] = {}
        self.behave: Behaviour = self.obey
        self.requests: list[Any] = []
        self.connections: set[tuple[str, int]] = set()
        self._ended = threading.Event()

    def obey(self, request: Any) -> Any:
        """As a good node would."""
        if isinstance(request, list):
            return [self.obey(each) for each in request]
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        result = self._result(request["method"], request["params"])
        return answer | (result if isinstance(result, dict) and "error" in result else {"result": result})

    def _result(self, method: str, params: list[Any]) -> Any:
        if method in self.results:
            result = self.results[method]
            return result(params) if callable(result) else result
        if method == "eth_chainId":
            return hex(self.chain_id)
        if method == "eth_blockNumber":
            return hex(self.head)
        if method == "eth_getBlockByNumber":
            number = self.head if params[0] == "latest" else int(params[0], 16)
            return {"number": hex(number), "hash": "0x" + f"{number:064x}", "timestamp": "0x1"}
        return "0x1"

    def methods(self) -> list[str]:
        """What was asked, batches flattened."""
        flat = [each for request in self.requests for each in (request if isinstance(request, list) else [request])]
        return [each["method"] for each in flat]

    def work(self) -> list[str]:
        """``methods`` without the questions that a client asks about the node itself."""
        return [method for method in self.methods() if method not in ("eth_chainId", "eth_blockNumber")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v2/tOkEn0fTheProvider99"

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(peer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - self is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                peer.connections.add(self.client_address)
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                peer.requests.append(request)
                reply = peer.behave(request)
                if reply is Hold:
                    peer._ended.wait(30)
                    self.close_connection = True
                    return
                if not isinstance(reply, Reply):
                    reply = Reply(json.dumps(reply).encode())
                if reply.cut:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(reply.announced or len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                self.close_connection = self.close_connection or reply.announced is not None

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        return Handler
