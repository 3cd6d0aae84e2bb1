"""Claims: put proved checkpoints into the outbox when the marketplace would accept them.

Guarantees that a checkpoint and its transaction are committed together, that one which was paused
meanwhile gets none, that a job has one claim under way to a block at a time, and that no claim is sent
before the rate rule and the dispute window allow it. Does not ask whether a claim would revert: the
transaction manager does, before it takes a nonce, and ``following`` acts on its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from jobs.models import Session
from settlement import checkpoints, pacing, policy
from settlement.chain.contracts import Call
from settlement.chain.signer import Signer
from settlement.host_chain import HostChain
from settlement.models import Checkpoint, CheckpointState, TransactionKind
from settlement.transaction_keys import claims_of_job
from settlement.txmanager import outbox

# So many rows take their step in one database transaction: each step stays conditional, and a commit,
# which waits for the disk, serves all of them.
BATCH = 100

# A claim that a transaction carries to a block, or carried to one that is gone.
_UNDER_WAY = (CheckpointState.QUEUED, CheckpointState.SENT, CheckpointState.REORGED)
_ANOTHER_UNDER_WAY = Exists(Checkpoint.objects.filter(session=OuterRef("session"), state__in=_UNDER_WAY))


def submit_due(chain: HostChain) -> int:
    """Put proved checkpoints that the marketplace would accept now into the outbox; returns how many."""
    if chain.signer is None:
        return 0
    due = _first_of_each_job(_due(chain))
    if not due:
        return 0
    pace = pacing.read_pace(chain)
    return sum(
        _submit_all(chain, due[start : start + BATCH], signer=chain.signer, pace=pace)
        for start in range(0, len(due), BATCH)
    )


def _due(chain: HostChain) -> QuerySet[Checkpoint]:
    return (
        Checkpoint.objects.filter(session__deployment=chain.key, proof__isnull=False)
        .due(CheckpointState.PROVED, CheckpointState.RETRY_AT, now=timezone.now())
        .filter(~_ANOTHER_UNDER_WAY)
        .select_related("session")
        .order_by("id")
    )


def _first_of_each_job(due: QuerySet[Checkpoint]) -> list[Checkpoint]:
    """Two claims of a job in one block would break the rate rule: the later waits for the earlier."""
    first: dict[int, int] = {}
    for pk, session_id in due.values_list("pk", "session_id").iterator():
        first.setdefault(session_id, pk)
    pks = list(first.values())
    return [row for start in range(0, len(pks), BATCH) for row in due.filter(pk__in=pks[start : start + BATCH])]


def _submit_all(chain: HostChain, due: Sequence[Checkpoint], *, signer: Signer, pace: pacing.Pace) -> int:
    """In one commit: a checkpoint that moved has its transaction, and the other way round."""
    orders = {checkpoint.pk: _order(chain, checkpoint, pace=pace) for checkpoint in due if _may(checkpoint, pace=pace)}
    submitted = 0
    with transaction.atomic():
        wanted = [checkpoint for checkpoint in due if checkpoint.pk in orders]
        # Another worker may have read another checkpoint of the same job as its first: this one was not proved yet.
        sessions = Session.objects.select_for_update().filter(pk__in={checkpoint.session_id for checkpoint in wanted})
        claimed_at = dict(sessions.order_by("pk").values_list("pk", "last_claim_at"))
        # Nor may an operator pause one before this is committed: its transaction would be sent all the same.
        locked = Checkpoint.objects.select_for_update().filter(pk__in=list(orders)).order_by("pk")
        now = {pk: tuple(rest) for pk, *rest in locked.values_list("pk", "state", "retries", "transaction_id")}
        alone = _without_another(wanted)
        free = [
            checkpoint
            for checkpoint in wanted
            if checkpoint.pk in alone
            and now[checkpoint.pk] == (checkpoint.state, checkpoint.retries, checkpoint.transaction_id)
            and claimed_at[checkpoint.session_id] == checkpoint.session.last_claim_at
        ]
        taken = [orders[checkpoint.pk] for checkpoint in free]
        rows = outbox.enqueue_all(taken, chain_id=chain.deployment.chain_id, sender=signer.address)
        for state in (CheckpointState.PROVED, CheckpointState.RETRY_AT):
            steps = {
                checkpoint.pk: {"transaction": rows[orders[checkpoint.pk].key]}
                for checkpoint in free
                if checkpoint.state == state
            }
            moved = checkpoints.move_all(steps, from_state=state, to_state=CheckpointState.QUEUED)
            submitted += len(moved)
    return submitted


def _without_another(rows: Sequence[Checkpoint]) -> set[int]:
    """Primary keys of the checkpoints whose jobs have no claim under way."""
    known = Checkpoint.objects.filter(pk__in=[checkpoint.pk for checkpoint in rows])
    return set(known.filter(~_ANOTHER_UNDER_WAY).values_list("pk", flat=True))


def _may(checkpoint: Checkpoint, *, pace: pacing.Pace) -> bool:
    """Whether the marketplace would accept the claim by now; if not, it waits until it would."""
    earliest, rule = _earliest(checkpoint, pace=pace)
    if earliest > pace.now:
        # By this machine's clock, which the wait is measured with.
        until = timezone.now() + (earliest - pace.now)
        checkpoints.wait(checkpoint, until=until, reason=rule, counts=False)
        return False
    return True


def _order(chain: HostChain, checkpoint: Checkpoint, *, pace: pacing.Pace) -> outbox.Order:
    session = checkpoint.session
    return outbox.Order(
        key=f"{claims_of_job(chain.key, session.job_id)}{checkpoint.index}:{checkpoint.retries}",
        kind=TransactionKind.CLOSING_CLAIM if checkpoint.closing else TransactionKind.CLAIM,
        call=claim_call(chain, checkpoint),
        cost_limit=policy.cost_limit(
            tokens=checkpoint.tokens, value=pace.token_value(session), usual_cost=pace.usual_cost
        ),
    )


def _earliest(checkpoint: Checkpoint, *, pace: pacing.Pace) -> tuple[datetime, str]:
    """When the marketplace first accepts the claim, and which of its rules says so."""
    session = checkpoint.session
    paced = pace.earliest_claim(session, tokens=checkpoint.tokens)
    if checkpoint.closing and pace.dispute_until(session) > paced:
        return pace.dispute_until(session), "the marketplace's dispute window (DisputeWindowOpen)"
    return paced, "the marketplace's rate rule"


def claim_call(chain: HostChain, checkpoint: Checkpoint) -> Call[None]:
    """The contract call that claims a checkpoint: its own tokens, never a running total."""
    job_id = checkpoint.session.job_id
    assert job_id is not None and checkpoint.proof is not None  # noqa: S101 - proved checkpoints of jobs only
    if checkpoint.closing:
        return chain.marketplace.closing_claim(
            job_id=job_id,
            tokens=checkpoint.tokens,
            proof=bytes(checkpoint.proof),
            reference=completion_reference(checkpoint.session),
        )
    return chain.marketplace.claim(job_id=job_id, tokens=checkpoint.tokens, proof=bytes(checkpoint.proof))


def completion_reference(session: Session) -> str:
    """What this host writes as a completed job's conversation reference; it keeps no conversations."""
    return f"fabstir-host:session:{session.pk}"
