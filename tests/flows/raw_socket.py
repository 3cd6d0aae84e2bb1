"""A WebSocket by hand: frames that no library would send, and a reader that need not read."""

from __future__ import annotations

import base64
import os
import socket
import struct

PATIENCE_SECONDS = 60.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class RawSocket:
    """Connected and greeted. ``receive_buffer`` in bytes, so that little fits between server and reader."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, headers: tuple[str, ...] = ()) -> None:
        self.connection = socket.socket()
        if receive_buffer is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.connection.settimeout(PATIENCE_SECONDS)
        self.connection.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            "GET /v1/ws HTTP/1.1",
            "Host: x",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *headers,
        )
        self.connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, self._received = self._received.split(b"\r\n\r\n", 1)
        self.answer = head.decode()
        assert " 101 " in self.answer.splitlines()[0], self.answer

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()

    def send(self, payload: bytes, *, opcode: int = TEXT, fin: bool = True, rsv: int = 0, masked: bool = True) -> None:
        """One frame, as wrong as wanted."""
        self.connection.sendall(frame(payload, opcode=opcode, fin=fin, rsv=rsv, masked=masked))

    def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame. ``(CLOSE, b"")`` where the connection just ended."""
        try:
            while (found := self._parsed()) is None:
                self._more()
        except (ConnectionError, EOFError):
            return CLOSE, b""
        return found

    def close_code(self) -> int:
        """The code of the close frame that the server sends sooner or later; 0 if it just hung up."""
        while True:
            opcode, payload = self.receive()
            if opcode == CLOSE:
                return struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else 0

    def drain(self) -> bool:
        """Throw away what has arrived. ``False`` once the server has ended the connection."""
        self.connection.setblocking(False)
        try:
            while True:
                if not self.connection.recv(65536):
                    return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.connection.settimeout(PATIENCE_SECONDS)

    def _more(self) -> None:
        data = self.connection.recv(65536)
        if not data:
            raise EOFError
        self._received += data

    def _parsed(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        length, start = data[1] & 127, 2
        for marker, size, code in ((126, 2, ">H"), (127, 8, ">Q")):
            if data[1] & 127 == marker:
                if len(data) < 2 + size:
                    return None
                length, start = struct.unpack(code, data[2 : 2 + size])[0], 2 + size
        if len(data) < start + length:
            return None
        self._received = data[start + length :]
        return data[0] & 15, data[start : start + length]


def frame(payload: bytes, *, opcode: int = TEXT, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    first = (128 if fin else 0) | (rsv << 4) | opcode
    length = len(payload)
    mark = 128 if masked else 0
    if length < 126:
        head = struct.pack(">BB", first, mark | length)
    elif length < 65536:
        head = struct.pack(">BBH", first, mark | 126, length)
    else:
        head = struct.pack(">BBQ", first, mark | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    repeated = (mask * (length // 4 + 1))[:length]
    masked_payload = (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(length)
    return head + mask + masked_payload
