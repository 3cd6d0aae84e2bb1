"""Limits of WebSockets: what one connection, and one address, may ask of this process.

Guarantees nothing by itself: ``connection`` and ``sockets`` keep them, and the web server the size of frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """``plaintext_seconds``: unencrypted answers end after so long, since clients of that dialect give up
    after 30 s without saying so; 0: never. ``slow_reader_seconds``: so long may one frame wait for its
    reader. ``idle_seconds``: so long may a socket say nothing while nothing is being answered.
    ``ping_seconds``: a peer is asked for a sign of life so often, and dropped if it gives none in as long again.
    """

    max_message_bytes: int = 1024 * 1024
    connections_per_address: int = 4096
    messages_per_second: int = 50
    idle_seconds: int = 3600
    ping_seconds: int = 20
    plaintext_seconds: int = 27
    slow_reader_seconds: int = 30
    queued_messages: int = 32


class Allowance:
    """So many messages a second, and as many as five seconds bring in one go."""

    __slots__ = ("_at", "_burst", "_clock", "_left", "_rate")

    def __init__(self, per_second: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._burst = float(5 * per_second)
        self._left = self._burst
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        """Whether another message is within the limit. One beyond it costs as well, down to a second burst."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left = max(-self._burst, self._left - 1)
        return self._left >= 0

    @property
    def overdrawn(self) -> bool:
        """Whether messages went on and on after they were refused."""
        return self._left <= -self._burst
