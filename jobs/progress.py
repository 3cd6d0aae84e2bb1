"""What becomes of a session's tokens after they were delivered, as its client is told over its WebSocket.

A port: nobody pushes, so the sockets of a process ask for all their sessions at once now and then;
settlement implements the answer over its checkpoints and the site hands it in. Turns two looks at a
session into the frames that say what changed between them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Status = Literal["pending", "submitted", "confirmed", "failed", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointProgress:
    """One claim on its way: ``proof`` and ``checkpoint`` as clients are told of them.

    ``submitted``: in the mempool or a block; ``confirmed``: final. ``error`` says why one failed or waits.
    """

    index: int
    status: Status
    proof_id: str = ""
    size_bytes: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionProgress:
    """The newest claims of a session, oldest first, and whether its job has been completed."""

    checkpoints: tuple[CheckpointProgress, ...] = ()
    completed: bool = False
    tokens_claimed: int = 0


class ProgressFeed(Protocol):
    """Where settlement says how far it is."""

    def read(self, session_ids: Collection[int]) -> Mapping[int, SessionProgress]:
        """By row id of the session; none for a session that is not known. Asks the database."""
        ...


class NoProgress:
    """A node that settles nothing."""

    def read(self, session_ids: Collection[int]) -> Mapping[int, SessionProgress]:
        """See ``ProgressFeed.read``."""
        return {}


def frames(before: SessionProgress, now: SessionProgress, *, session_id: str) -> Iterator[dict[str, Any]]:
    """What a client of the session ``session_id`` is told."""
    known = {checkpoint.index: checkpoint for checkpoint in before.checkpoints}
    at = int(time.time() * 1000)
    for checkpoint in now.checkpoints:
        earlier = known.get(checkpoint.index)
        if earlier == checkpoint:
            continue
        yield _status(checkpoint, session_id=session_id, at=at)
        sent = ("submitted", "confirmed")
        if checkpoint.status in sent and (earlier is None or earlier.status not in sent):
            yield {
                "type": "proof_submitted",
                "session_id": session_id,
                "proof_id": checkpoint.proof_id,
                "size_bytes": checkpoint.size_bytes,
                "timestamp": at,
            }
            yield {
                "type": "checkpoint_submitted",
                "session_id": session_id,
                "checkpoint_index": checkpoint.index,
                "timestamp": at,
            }
    if now.completed and not before.completed:
        claimed = str(now.tokens_claimed)
        yield {"type": "session_completed", "session_id": session_id, "tokens_claimed": claimed, "timestamp": at}


def _status(checkpoint: CheckpointProgress, *, session_id: str, at: int) -> dict[str, Any]:
    error = {"error": checkpoint.error} if checkpoint.error else {}
    frame: dict[str, Any] = {
        "type": "session_status",
        "session_id": session_id,
        "checkpoint": {"status": checkpoint.status, "checkpoint_index": checkpoint.index, **error},
        "timestamp": at,
    }
    if checkpoint.proof_id:
        frame["proof"] = {
            "status": checkpoint.status,
            "proof_id": checkpoint.proof_id,
            "size_bytes": checkpoint.size_bytes,
            **error,
        }
    return frame
