"""How a model directory comes to be: in a hidden sibling that is renamed when it is complete.

Guarantees: one process at a time changes a store; what a crash, a signal or a full disk leaves is
hidden and deleted by the next change, so that no half model is ever seen. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nodes.model_manifest import ModelError

_STAGING = ".staging-"


class DiskFull(ModelError):
    """The models directory has no room for the work."""


class ModelExists(ModelError):
    """A model with this id is in the store already."""


def require_room(directory: Path, *, room: int) -> None:
    """Raise ``DiskFull`` unless ``room`` bytes are free where ``directory`` is."""
    free = shutil.disk_usage(directory).free
    if free < room:
        raise DiskFull(f"{directory} has {free // 10**6} MB free and needs {room // 10**6} MB. Free some space.")


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One process at a time changes the store; rests of crashed ones are deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for rest in directory.glob(f"{_STAGING}*"):
            shutil.rmtree(rest, ignore_errors=True)
        yield


@contextlib.contextmanager
def staged(target: Path, *, room: int, replace: bool = False) -> Iterator[tuple[Path, Path]]:
    """A directory that becomes ``target`` at the end, and one for intermediate files. ``room`` is in bytes."""
    directory = target.parent
    if target.exists() and not replace:
        raise ModelExists(f"A model {target.name} is in {directory} already. Remove it first.")
    require_room(directory, room=room)
    work = Path(tempfile.mkdtemp(prefix=_STAGING, dir=directory))
    staging, scratch = work / "model", work / "scratch"
    try:
        staging.mkdir()
        scratch.mkdir()
        yield staging, scratch
        _make_durable(staging)
        if target.exists():
            target.rename(work / "replaced")
        staging.rename(target)
        _make_durable(directory)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"{directory} is full. Free some space and try again.") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def discard(target: Path) -> None:
    """Delete a model. Renamed first: what a crash leaves is a hidden rest, not a damaged model."""
    doomed = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))
    target.rename(doomed / target.name)
    shutil.rmtree(doomed)


def _make_durable(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        if path.is_dir() and path != directory:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
