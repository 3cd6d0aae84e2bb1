"""Checkpoints: seal counted tokens, and every step from there to paid.

Guarantees that ranges of a session tile what was counted, without overlap or gap; that each step is
one conditional update and one event row in one transaction, so that of two workers one does it; and
that "confirmed" means a final receipt *and* the marketplace's own event with this job, host and count. A
session's ``last_claim_at`` is the block time of its newest mined claim, and goes back with a reorg.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from django.db import transaction
from django.db.models import Case, F, Field, Max, Model, Q, Value, When
from django.utils import timezone

from jobs.models import Session
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState, Receipt
from settlement.models.checkpoint import PAID_STATES

logger = logging.getLogger(__name__)

# An operator may hold what no transaction carries; a queued claim's transaction is cancelled instead.
PAUSABLE = (CheckpointState.SEALED, CheckpointState.PROVED, CheckpointState.RETRY_AT)
# Nothing but an operator moves these.
HELD = (CheckpointState.PAUSED, CheckpointState.FAILED)
_INSTEAD_OF_PAUSE = {
    CheckpointState.PROVING: "Ask again once it is proved.",
    **dict.fromkeys((CheckpointState.QUEUED, CheckpointState.SENT), "Cancel its transaction instead."),
}

T = TypeVar("T")


class StepRefused(Exception):
    """An operator asked for a step that the checkpoint's state does not allow. Says why."""


def move(
    checkpoint_id: int,
    *,
    from_state: CheckpointState,
    to_state: CheckpointState,
    reason: str = "",
    retry_at: datetime | None = None,
    still: Q | None = None,
    **changes: Any,
) -> bool:
    """Take one step. ``False`` if the checkpoint is no longer in ``from_state``: somebody else took it.

    ``still`` is what else has to hold: a step that judges a transaction gives ``as_read``.
    """
    with transaction.atomic():
        moved = Checkpoint.objects.filter(still or Q(), pk=checkpoint_id, state=from_state).update(
            state=to_state, reason=reason[:500], retry_at=retry_at, **changes
        )
        if moved:
            CheckpointEvent.objects.create(
                checkpoint_id=checkpoint_id, from_state=from_state, to_state=to_state, reason=reason[:500]
            )
    return bool(moved)


def move_all(
    steps: Mapping[int, Mapping[str, Any]],
    *,
    from_state: CheckpointState,
    to_state: CheckpointState,
    reason: str = "",
    retry_at: datetime | None = None,
    still: Q | None = None,
) -> set[int]:
    """Take the same step with many checkpoints, each with changes of its own; returns which of them took it.

    One update and one insert for all of them. Where another worker was faster with one, each is tried alone.
    """
    if not steps:
        return set()
    with transaction.atomic():
        moved = Checkpoint.objects.filter(still or Q(), pk__in=list(steps), state=from_state).update(
            state=to_state, reason=reason[:500], retry_at=retry_at, **_cases(steps)
        )
        if moved == len(steps):
            CheckpointEvent.objects.bulk_create(
                CheckpointEvent(checkpoint_id=pk, from_state=from_state, to_state=to_state, reason=reason[:500])
                for pk in steps
            )
            return set(steps)
        transaction.set_rollback(True)
    return {
        pk
        for pk, changes in steps.items()
        if move(pk, from_state=from_state, to_state=to_state, reason=reason, retry_at=retry_at, still=still, **changes)
    }


def as_read(checkpoints: Sequence[Checkpoint]) -> Q:
    """That each has the transaction it was read with: what became of that one says nothing of a newer try.

    A transaction serves one checkpoint for ever, so the set of them tells as much as pairs would.
    """
    found = {checkpoint.transaction_id for checkpoint in checkpoints}
    known = Q(transaction_id__in=found - {None})
    return known | Q(transaction_id__isnull=True) if None in found else known


def _cases(steps: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The rows' changes by field, as one expression each; all rows change the same fields."""
    changes: dict[str, Any] = {}
    for name in next(iter(steps.values())):
        field = Checkpoint._meta.get_field(name)
        assert isinstance(field, Field)  # noqa: S101 - a row's own column, no relation of others to it
        values = {pk: _plain(own[name]) for pk, own in steps.items()}
        first = next(iter(values.values()))
        if all(value == first for value in values.values()):
            changes[field.attname] = first
        else:
            cases = (When(pk=pk, then=Value(value, output_field=field)) for pk, value in values.items())
            changes[name] = Case(*cases)
    return changes


def _plain(value: Any) -> Any:
    return value.pk if isinstance(value, Model) else value


def _step(checkpoint: Checkpoint, to_state: CheckpointState, *, reason: str, **changes: Any) -> bool:
    """One step from where the checkpoint was read, unless it has another transaction by now."""
    here, still = CheckpointState(checkpoint.state), as_read([checkpoint])
    return move(checkpoint.pk, from_state=here, to_state=to_state, reason=reason, still=still, **changes)


def wait(checkpoint: Checkpoint, *, until: datetime, reason: str, counts: bool = True) -> bool:
    """Put a checkpoint off; it stays claimable. ``counts`` if the wait is for something that went wrong."""
    retries = F("retries") + (1 if counts else 0)
    return _step(checkpoint, CheckpointState.RETRY_AT, reason=reason, retry_at=until, retries=retries)


def fail(checkpoint: Checkpoint, *, reason: str) -> bool:
    """Give a checkpoint up: the chain will never accept it. An operator sees why."""
    return _step(checkpoint, CheckpointState.FAILED, reason=reason)


def hold(checkpoint: Checkpoint, *, reason: str) -> bool:
    """To ``PAUSED``: nothing happens to it until an operator resumes it."""
    return _step(checkpoint, CheckpointState.PAUSED, reason=reason)


def pause(checkpoint: Checkpoint, *, actor: str, reason: str) -> bool:
    """Hold a checkpoint until somebody resumes it; ``False`` if it just moved. Raises ``StepRefused``."""
    if checkpoint.state not in PAUSABLE:
        refusal = f"{checkpoint} is {checkpoint.state}: only a claim that no transaction carries can be paused."
        raise StepRefused(f"{refusal} {_INSTEAD_OF_PAUSE.get(CheckpointState(checkpoint.state), '')}".rstrip())
    words = f"paused by {actor}: {reason}"
    return _told(checkpoint, hold(checkpoint, reason=words), words)


def resume(checkpoint: Checkpoint, *, actor: str, reason: str = "") -> bool:
    """Let a paused checkpoint go on; ``False`` if it just moved. Raises ``StepRefused``."""
    if checkpoint.state == CheckpointState.FAILED:
        raise StepRefused(f"{checkpoint} is failed: it can only be tried again (retry), with a reason.")
    if checkpoint.state != CheckpointState.PAUSED:
        raise StepRefused(f"{checkpoint} is {checkpoint.state}: there is nothing to resume.")
    return _go_on(checkpoint, reason=f"resumed by {actor}: {reason}" if reason else f"resumed by {actor}")


def retry(checkpoint: Checkpoint, *, actor: str, reason: str) -> bool:
    """Try a failed checkpoint once more; ``False`` if it just moved. Raises ``StepRefused``.

    Its tokens are paid once at most: the contract takes a proof once, and a claim that it refuses for
    being accepted before is confirmed from its event.
    """
    if checkpoint.state != CheckpointState.FAILED:
        raise StepRefused(f"{checkpoint} is {checkpoint.state}: only what failed can be tried again.")
    return _go_on(checkpoint, reason=f"tried again by {actor}: {reason}")


def _go_on(checkpoint: Checkpoint, *, reason: str) -> bool:
    # One more try, so that its next transaction has a key that no cancelled or refused one has used.
    return _told(checkpoint, wait(checkpoint, until=timezone.now(), reason=reason), reason)


def _told(checkpoint: Checkpoint, done: bool, words: str) -> bool:
    if done:
        extra = {"event": "checkpoint_request", "checkpoint_id": checkpoint.pk}
        logger.warning("%s: %s", checkpoint, words, extra=extra)
    return done


def seal(session: Session, *, tokens: int, closing: bool) -> Checkpoint | None:
    """Seal the next ``tokens`` counted tokens of a session. ``None`` if another worker was faster."""
    first = session.tokens_sealed
    with transaction.atomic():
        sealed = Session.objects.filter(pk=session.pk, tokens_sealed=first, tokens_tracked__gte=first + tokens).update(
            tokens_sealed=first + tokens, checkpoint_count=F("checkpoint_count") + 1
        )
        if not sealed:
            return None
        checkpoint = Checkpoint.objects.create(
            session=session,
            index=session.checkpoint_count,
            from_token=first,
            to_token=first + tokens,
            closing=closing,
        )
        CheckpointEvent.objects.create(
            checkpoint=checkpoint, to_state=CheckpointState.SEALED, reason="closing claim" if closing else ""
        )
    return checkpoint


def keep_proofs(proofs: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Store the proofs (prover, proof, proof_hash) of checkpoints that this worker is proving, by their ids."""
    return move_all(proofs, from_state=CheckpointState.PROVING, to_state=CheckpointState.PROVED)


def mine(checkpoint: Checkpoint, *, block_time: datetime, reason: str = "") -> bool:
    """The claim is in a block of ``block_time``: from then on the rate rule counts."""
    with transaction.atomic():
        mined = move(
            checkpoint.pk,
            from_state=CheckpointState.SENT,
            to_state=CheckpointState.MINED,
            reason=reason,
            still=as_read([checkpoint]),
        )
        if mined:
            _claimed_at([checkpoint.session_id], block_time)
    return mined


def mine_all(checkpoints: Sequence[tuple[Checkpoint, datetime]]) -> set[int]:
    """Claims that were sent are in blocks of these times; returns which of them were not known to be."""
    with transaction.atomic():
        mined = move_all(
            {row.pk: {} for row, _ in checkpoints},
            from_state=CheckpointState.SENT,
            to_state=CheckpointState.MINED,
            still=as_read([row for row, _ in checkpoints]),
        )
        _all_claimed_at([(row, at) for row, at in checkpoints if row.pk in mined])
    return mined


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """The marketplace accepted a claim for good, in a block of ``claimed_at``.

    Amounts in base units of the job's token; ``None`` where the marketplace pays when the job ends.
    """

    checkpoint: Checkpoint
    claimed_at: datetime
    host_amount: int | None
    treasury_amount: int | None

    @property
    def changes(self) -> dict[str, Any]:
        """What of the checkpoint follows."""
        known = self.host_amount is not None and self.treasury_amount is not None
        return {
            "gross": (self.host_amount or 0) + (self.treasury_amount or 0) if known else None,
            "host_amount": self.host_amount if known else None,
            "treasury_amount": self.treasury_amount if known else None,
        }


def confirm_all(accepted: Sequence[Acceptance]) -> set[int]:
    """Mined claims that the marketplace accepted for good; returns which were not confirmed before."""
    now = timezone.now()
    with transaction.atomic():
        confirmed = move_all(
            {each.checkpoint.pk: {**each.changes, "confirmed_at": now} for each in accepted},
            from_state=CheckpointState.MINED,
            to_state=CheckpointState.CONFIRMED,
            reason="event matched and final",
            still=as_read([each.checkpoint for each in accepted]),
        )
        rows = [each for each in accepted if each.checkpoint.pk in confirmed]
        tokens: Counter[int] = Counter()
        for each in rows:
            tokens[each.checkpoint.session_id] += each.checkpoint.tokens
        for count, sessions in _grouped(tokens).items():
            Session.objects.filter(pk__in=sessions).update(tokens_claimed=F("tokens_claimed") + count)
        _all_claimed_at([(each.checkpoint, each.claimed_at) for each in rows])
    return confirmed


def _all_claimed_at(claims: Sequence[tuple[Checkpoint, datetime]]) -> None:
    newest: dict[int, datetime] = {}
    for checkpoint, at in claims:
        newest[checkpoint.session_id] = max(at, newest.get(checkpoint.session_id, at))
    known = dict(Session.objects.filter(pk__in=newest).values_list("pk", "last_claim_at"))
    behind = {pk: at for pk, at in newest.items() if (before := known.get(pk)) is None or before < at}
    for at, sessions in _grouped(behind).items():
        _claimed_at(sessions, at)


def _grouped(values: Mapping[int, T]) -> dict[T, list[int]]:
    """The ids that have each value: rows that change alike change together."""
    groups: dict[T, list[int]] = {}
    for pk in sorted(values):
        groups.setdefault(values[pk], []).append(pk)
    return groups


def _claimed_at(sessions: Sequence[int], block_time: datetime) -> None:
    older = Q(last_claim_at__isnull=True) | Q(last_claim_at__lt=block_time)
    Session.objects.filter(older, pk__in=sessions).update(last_claim_at=block_time)


def take_back(checkpoint: Checkpoint, *, reason: str) -> bool:
    """A reorg took the claim's block: nothing that followed from it counts any more."""
    paid = checkpoint.state in PAID_STATES
    with transaction.atomic():
        changes: dict[str, Any] = {"gross": None, "host_amount": None, "treasury_amount": None, "confirmed_at": None}
        if not _step(checkpoint, CheckpointState.REORGED, reason=reason, **changes):
            return False
        standing = Receipt.objects.filter(
            transaction__checkpoint__session_id=checkpoint.session_id,
            transaction__checkpoint__state__in=(CheckpointState.MINED, *PAID_STATES),
            succeeded=True,
        )
        Session.objects.filter(pk=checkpoint.session_id).update(
            tokens_claimed=F("tokens_claimed") - (checkpoint.tokens if paid else 0),
            last_claim_at=standing.aggregate(newest=Max("block_time"))["newest"],
        )
    return True


def settle_job(session_id: int, *, gross: int, host_amount: int) -> int:
    """The end of a job paid all its claims together: spread that over them; returns how many there were.

    Each confirmed claim gets its part by tokens, rounded cumulatively, so that the parts add up to
    exactly what the event stated (base units of the job's token).
    """
    with transaction.atomic():
        session = Session.objects.get(pk=session_id)
        claims = list(session.checkpoints.filter(state=CheckpointState.CONFIRMED).order_by("index"))
        parts = parts_of_job(session, [claim.tokens for claim in claims], gross=gross, host_amount=host_amount)
        for claim, (part, host) in zip(claims, parts, strict=True):
            move(
                claim.pk,
                from_state=CheckpointState.CONFIRMED,
                to_state=CheckpointState.SETTLED,
                reason="credited when the job ended",
                gross=part,
                host_amount=host,
                treasury_amount=part - host,
            )
    return len(claims)


def parts_of_job(session: Session, tokens: Sequence[int], *, gross: int, host_amount: int) -> list[tuple[int, int]]:
    """Gross and host's part of each claim of ``tokens``, in order; they add up to ``gross`` and ``host_amount``."""
    if not tokens:
        return []
    ends = list(accumulate(tokens))
    # What a fee floor adds, and what rounding leaves over, belongs to the last claim.
    charged = [0, *(min(gross, session.worth(end)) for end in ends[:-1]), gross]
    treasury = [(gross - host_amount) * amount // gross if gross else 0 for amount in charged]
    return [
        (part_end - part_start, (part_end - part_start) - (fee_end - fee_start))
        for (part_start, part_end), (fee_start, fee_end) in zip(pairwise(charged), pairwise(treasury), strict=True)
    ]
