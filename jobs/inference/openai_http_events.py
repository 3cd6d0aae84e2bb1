"""Server-sent events from the bytes of an answer, and text from JSON's halves of characters.

Guarantees that an event is either complete JSON or ``BadEvent`` is raised, that an answer which ends
inside a line is noticed, and that nothing larger than ``MAX_EVENT_BYTES`` is kept. Knows nothing of
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_EVENT_BYTES = 4 * 1024 * 1024
_DONE = b"[DONE]"


class BadEvent(Exception):
    """What arrived is no event stream of JSON objects. The text names the fault and quotes nothing."""


class EventDecoder:
    """Feed bytes, take JSON objects. ``done`` is set by the ``[DONE]`` that ends a stream."""

    def __init__(self) -> None:
        self._unfinished = b""
        self._data: list[bytes] = []
        self.done = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The events that ``data`` completes. Raises ``BadEvent`` behind those that precede the fault."""
        *lines, self._unfinished = (self._unfinished + data).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            field, _, value = line.partition(b":")
            if line and field in (b"data", b"error"):
                # Some servers end a broken stream with a field of that name.
                value = value.removeprefix(b" ")
                self._data.append(value if field == b"data" else b'{"error":' + value + b"}")
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                if data.strip() == _DONE:
                    self.done = True
                else:
                    yield _parsed(data)
        if len(self._unfinished) > MAX_EVENT_BYTES:
            raise BadEvent(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def end(self) -> None:
        """Call at the end of the bytes. Raises ``BadEvent`` if they end inside an event."""
        if self._unfinished.strip() or self._data:
            raise BadEvent("it ends inside an event")


class WholeCharacters:
    """Text as it came out of JSON, in whole characters: a lone first half waits for its second."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """The text that is complete now."""
        if text.isascii() and not self._half:
            return text
        text = self._half + text
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _joined(text)

    def flush(self) -> str:
        """What is left at the end: a half character is one replacement character."""
        rest, self._half = self._half, ""
        return _joined(rest)


def _joined(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise BadEvent("an event is not JSON") from None
    if not isinstance(event, dict):
        raise BadEvent("an event is not a JSON object")
    return event
