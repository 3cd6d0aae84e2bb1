"""A hub on this machine: speaks as much of the Hugging Face protocol as downloading a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c0" * 20


class LocalHub:
    """One repository at one commit. ``cut_after``: bytes of a weight file before the connection drops, once."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository = repository
        self.files = files
        self.cut_after: int | None = None
        self.lie_about: str = ""
        self.requests: list[tuple[str, str, str]] = []
        self.endpoint = ""

    def description(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "b" * 40}
            if self.is_large(name):
                sha256 = hashlib.sha256(content + (b"!" if name == self.lie_about else b"")).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings}

    @staticmethod
    def is_large(name: str) -> bool:
        return name.endswith((".safetensors", ".gguf", ".bin"))

    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    """Answers for ``hub``, which a class of its own names."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if path.startswith(f"/api/models/{self.hub.repository}"):
            revision = path.rpartition("/")[2]
            if revision not in ("main", COMMIT):
                self._send(404, json.dumps({"error": "Revision not found"}).encode(), body=body)
            else:
                self._send(200, json.dumps(self.hub.description()).encode(), body=body)
            return
        name = path.removeprefix(f"/{self.hub.repository}/resolve/{COMMIT}/")
        if name not in self.hub.files:
            self._send(404, b"", body=body, extra={"X-Error-Code": "EntryNotFound"})
            return
        self._send_file(name, body=body)

    def _send_file(self, name: str, *, body: bool) -> None:
        content = self.hub.files[name]
        etag = hashlib.sha256(content).hexdigest() if self.hub.is_large(name) else hashlib.sha1(content).hexdigest()
        extra = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if body and wanted else 0
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], body=body, extra=extra, large=self.hub.is_large(name))

    def _send(
        self, status: int, content: bytes, *, body: bool, extra: dict[str, str] | None = None, large: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if large and self.hub.cut_after is not None:
            cut, self.hub.cut_after = self.hub.cut_after, None
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)


@contextmanager
def running(hub: LocalHub) -> Iterator[LocalHub]:
    """Serve the hub on a free port."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
