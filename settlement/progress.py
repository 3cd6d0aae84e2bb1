"""How far the claims of sessions are (implements the jobs app's ``ProgressFeed``), from the checkpoints' rows.

Guarantees one query for all sessions of a process, over their newest checkpoints only, and no proof in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from django.db.models import F, FilteredRelation, Q
from django.db.models.functions import Length

from jobs.models import Session, SessionState
from jobs.progress import CheckpointProgress, SessionProgress, Status
from settlement.models import CheckpointState
from settlement.models.checkpoint import PAID_STATES

_NEWEST = 3
_ENDED = (SessionState.COMPLETED, SessionState.ENDED_ON_CHAIN)
_STATUSES: Mapping[str, Status] = {
    CheckpointState.SENT: "submitted",
    CheckpointState.MINED: "submitted",
    CheckpointState.PAUSED: "paused",
    CheckpointState.FAILED: "failed",
    **dict.fromkeys(PAID_STATES, "confirmed"),
}


class CheckpointProgressFeed:
    """Reads the tables of settlement."""

    def read(self, session_ids: Collection[int]) -> Mapping[int, SessionProgress]:
        """See ``ProgressFeed.read``. Of each session the last few checkpoints; older ones change no more."""
        newest = Q(checkpoints__index__gte=F("checkpoint_count") - _NEWEST)
        rows = (
            Session.objects.filter(pk__in=session_ids)
            .annotate(newest=FilteredRelation("checkpoints", condition=newest))
            .order_by("pk", "newest__index")
            .values_list(
                "pk",
                "state",
                "tokens_claimed",
                "newest__index",
                "newest__state",
                "newest__reason",
                "newest__proof_hash",
                Length("newest__proof"),
            )
        )
        checkpoints: dict[int, list[CheckpointProgress]] = defaultdict(list)
        sessions: dict[int, tuple[bool, int]] = {}
        for pk, session_state, claimed, index, state, reason, proof_hash, size in rows:
            sessions[pk] = (session_state in _ENDED, claimed)
            if index is not None:
                checkpoints[pk].append(_progress(index, state, reason=reason, proof_hash=proof_hash, size=size))
        return {
            pk: SessionProgress(checkpoints=tuple(checkpoints[pk]), completed=completed, tokens_claimed=claimed)
            for pk, (completed, claimed) in sessions.items()
        }


def _progress(index: int, state: str, *, reason: str, proof_hash: str, size: int | None) -> CheckpointProgress:
    status = _STATUSES.get(state, "pending")
    return CheckpointProgress(
        index=index,
        status=status,
        proof_id=proof_hash,
        size_bytes=size or 0,
        error=reason if status in ("failed", "paused") else "",
    )
