"""One clock for the chain, the workers and the test: its offset from the wall clock lies in shared memory.

``skew`` is what the host's clock is wrong by: the chain does not know of it.
"""

from __future__ import annotations

import mmap
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from settlement.chain import local

_SHARED = struct.Struct("dd")


class SharedClock:
    """``now`` is what Python code sees; ``advance`` moves it and the chain together."""

    def __init__(self, path: Path, *, url: str) -> None:
        self.path, self.url = path, url
        if not path.exists():
            path.write_bytes(_SHARED.pack(0.0, 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SHARED.size)

    @property
    def offset(self) -> float:
        return float(_SHARED.unpack(self._memory[:])[0])

    @property
    def skew(self) -> float:
        return float(_SHARED.unpack(self._memory[:])[1])

    def set(self, *, offset: float | None = None, skew: float | None = None) -> None:
        """Seconds. What is not given stays."""
        self._memory[:] = _SHARED.pack(self.offset if offset is None else offset, self.skew if skew is None else skew)

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.offset + self.skew)

    def advance(self, seconds: int) -> None:
        local.increase_time(self.url, seconds=seconds)
        self.follow()

    def follow(self) -> None:
        """Catch up with the chain: many blocks within a second push its time ahead of any clock."""
        head = local.rpc(self.url, "eth_getBlockByNumber", ["latest", False])
        ahead = int(head["timestamp"], 16) - datetime.now(UTC).timestamp()
        self.set(offset=max(self.offset, ahead))
