"""The files through which several processes of this node share their figures.

Guarantees that the first of them begins with none, so that counters start at zero together; that those
of a process which ended still count while any other lives, so that no sum ever falls; and that the
gauges of a process which was killed are gone at the next look. A lock that dies with its process tells
who lives, not process ids, which come back.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_held: list[IO[str]] = []


def join(directory: Path) -> None:
    """Take part, from now until this process ends."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Somebody lives, or is emptying the directory just now.
        pass
    else:
        for file in directory.glob("*.db"):
            file.unlink(missing_ok=True)
    fcntl.flock(lock, fcntl.LOCK_SH)
    _held.append(lock)


def exposition(directory: Path) -> bytes:
    """The figures of all processes, in Prometheus' text format."""
    _forget_gauges_of_the_dead(directory)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_gauges_of_the_dead(directory: Path) -> None:
    for file in directory.glob("gauge_live*_*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdecimal() and not _lives(int(process)):
            file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
