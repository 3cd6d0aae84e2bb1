"""The ledger's invariants, checked against the database and against the chain.

Guarantees to name every violation it finds; changes nothing. I1 tracked = sum of usage rows; I2 every
token in at most one checkpoint and claimed ≤ tracked; I3 what the chain accepted = confirmed
checkpoints; I4 host + treasury = gross, with the treasury's share as the contract computes it; I5 one
nonce, one mined transaction; I6 no state moved backwards but by a reorg; I7 nothing waits unattended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Sum
from django.utils import timezone

from jobs.models import Session, TokenUsage
from settlement.chain.marketplaces import AcceptedClaim, EndedJob
from settlement.host_chain import HostChain
from settlement.indexer import RANGE_BLOCKS
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState, Transaction, TransactionState

BASIS_POINTS = 10_000
# A step of the pipeline takes seconds; a row that is due for this long has nobody to drive it.
UNATTENDED = timedelta(minutes=15)

_ORDER = [
    CheckpointState.SEALED,
    CheckpointState.PROVING,
    CheckpointState.PROVED,
    CheckpointState.QUEUED,
    CheckpointState.SENT,
    CheckpointState.MINED,
    CheckpointState.CONFIRMED,
    CheckpointState.SETTLED,
    CheckpointState.WITHDRAWN,
]
_PAID = (CheckpointState.CONFIRMED, CheckpointState.SETTLED, CheckpointState.WITHDRAWN)


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: which, and where."""

    invariant: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHistory:
    """What the marketplace's events say about this host's jobs, by job id."""

    claims: Mapping[int, list[AcceptedClaim]]
    ends: Mapping[int, EndedJob]


def verify(chain: HostChain) -> list[Violation]:
    """Every violation in the database, and between it and the chain."""
    return [*verify_database(), *verify_against_chain(chain)]


def verify_database() -> Iterator[Violation]:
    """I1, I2, I5, I6 and I7: what the database alone can show."""
    yield from _tracked_is_used()
    yield from _ranges_tile()
    yield from _one_transaction_per_nonce()
    yield from _no_step_backwards()
    yield from _nothing_unattended()


def verify_against_chain(chain: HostChain) -> Iterator[Violation]:
    """I3 and I4: the chain's own events against the confirmed checkpoints."""
    history = read_history(chain)
    terms = chain.marketplace.terms(chain.client)
    for session in Session.objects.with_job().filter(deployment=chain.key):
        assert session.job_id is not None  # noqa: S101 - the queryset holds sessions with a job
        yield from _claims_match(session, history.claims.get(session.job_id, []))
    for checkpoint in Checkpoint.objects.paid().filter(session__deployment=chain.key).select_related("session"):
        yield from _split_is_right(checkpoint, fee_basis_points=terms.fee_basis_points)


def read_history(chain: HostChain) -> ChainHistory:
    """Read all of the deployment's events that concern claims and ends of jobs."""
    claims: dict[int, list[AcceptedClaim]] = defaultdict(list)
    ends: dict[int, EndedJob] = {}
    head = chain.client.head().number
    for start in range(chain.deployment.deployed_at_block or 0, head + 1, RANGE_BLOCKS):
        logs = chain.client.logs(
            addresses=chain.marketplace.addresses, from_block=start, to_block=min(start + RANGE_BLOCKS - 1, head)
        )
        by_transaction: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for log in logs:
            by_transaction[str(log["transactionHash"])].append(log)
        for together in by_transaction.values():
            for claim in chain.marketplace.accepted_claims(together):
                claims[claim.job_id].append(claim)
        ends.update({ended.job_id: ended for ended in chain.marketplace.ended_jobs(logs)})
    return ChainHistory(claims=claims, ends=ends)


def _tracked_is_used() -> Iterator[Violation]:
    used = dict(TokenUsage.objects.values_list("session").annotate(total=Sum("count")).order_by())
    for session in Session.objects.only("tokens_tracked", "tokens_inherited", "job_id"):
        counted = used.get(session.pk, 0) + session.tokens_inherited
        if counted != session.tokens_tracked:
            yield Violation("I1", f"{session}: {session.tokens_tracked} tracked, usage rows say {counted}")


def _ranges_tile() -> Iterator[Violation]:
    ends: dict[int, int] = {}
    paid: dict[int, int] = defaultdict(int)
    rows = Checkpoint.objects.select_related("session").order_by("session", "from_token")
    for row in rows.iterator():
        expected = ends.get(row.session_id, row.session.tokens_inherited)
        if row.from_token != expected:
            yield Violation("I2", f"{row}: starts at {row.from_token}, the one before ends at {expected}")
        ends[row.session_id] = row.to_token
        paid[row.session_id] += row.tokens if row.state in _PAID else 0
    for session in Session.objects.with_job():
        end = ends.get(session.pk, session.tokens_inherited)
        if end != session.tokens_sealed:
            yield Violation("I2", f"{session}: {session.tokens_sealed} sealed, checkpoints end at {end}")
        claimed = paid[session.pk] + session.tokens_inherited
        if claimed != session.tokens_claimed:
            yield Violation("I2", f"{session}: {session.tokens_claimed} claimed, paid checkpoints hold {claimed}")


def _claims_match(session: Session, accepted: list[AcceptedClaim]) -> Iterator[Violation]:
    """Event by event: the same proofs, each once, with the same count and the same money."""
    ours = {row.proof_hash: row for row in session.checkpoints.paid()}
    theirs: dict[str, AcceptedClaim] = {}
    for claim in accepted:
        if claim.proof_hash in theirs:
            yield Violation("I3", f"{session}: the chain accepted proof {claim.proof_hash} twice")
        theirs[claim.proof_hash] = claim
    for proof_hash in ours.keys() - theirs.keys():
        yield Violation("I3", f"{ours[proof_hash]}: confirmed here, not on the chain")
    travelling = set(session.checkpoints.unpaid().values_list("proof_hash", flat=True))
    # Claims of an earlier life of this host are inherited, not checkpoints of this ledger.
    unknown = [claim for key, claim in theirs.items() if key not in ours and key not in travelling]
    if sum(claim.tokens for claim in unknown) != session.tokens_inherited:
        yield Violation("I3", f"{session}: {len(unknown)} claims on the chain are not in this ledger")
    for proof_hash in ours.keys() & theirs.keys():
        row, claim = ours[proof_hash], theirs[proof_hash]
        stated = (claim.tokens, claim.host_amount, claim.treasury_amount)
        if (row.tokens, row.host_amount, row.treasury_amount) != stated:
            yield Violation("I3", f"{row}: the chain says {stated} (tokens, host, treasury)")


def _split_is_right(checkpoint: Checkpoint, *, fee_basis_points: int) -> Iterator[Violation]:
    gross = checkpoint.tokens * checkpoint.session.price_per_token
    treasury = gross * fee_basis_points // BASIS_POINTS
    booked = (checkpoint.gross, checkpoint.host_amount, checkpoint.treasury_amount)
    if booked != (gross, gross - treasury, treasury):
        yield Violation("I4", f"{checkpoint}: booked {booked}, computed {(gross, gross - treasury, treasury)}")


def _one_transaction_per_nonce() -> Iterator[Violation]:
    mined = Transaction.objects.filter(receipt__isnull=False).order_by()
    twice = mined.values("chain_id", "sender", "nonce").annotate(times=Count("pk")).filter(times__gt=1)
    for row in twice:
        yield Violation("I5", f"nonce {row['nonce']} of {row['sender']} has {row['times']} mined transactions")


def _no_step_backwards() -> Iterator[Violation]:
    for event in CheckpointEvent.objects.exclude(from_state="").select_related("checkpoint").iterator():
        if event.from_state not in _ORDER or event.to_state not in _ORDER:
            continue
        backwards = _ORDER.index(CheckpointState(event.to_state)) < _ORDER.index(CheckpointState(event.from_state))
        # A prover that died gives its checkpoint back; nothing has left the node by then.
        given_back = (event.from_state, event.to_state) == (CheckpointState.PROVING, CheckpointState.SEALED)
        if backwards and not given_back:
            yield Violation("I6", f"{event.checkpoint}: {event}")


def _nothing_unattended() -> Iterator[Violation]:
    now = timezone.now()
    for row in Checkpoint.objects.unpaid().select_related("session"):
        last = row.events.last()
        due_since = row.retry_at or (last.at if last else row.created_at)
        if due_since < now - UNATTENDED:
            yield Violation("I7", f"{row}: {row.state} since {due_since.isoformat()}")
    stuck = Transaction.objects.unfinished().exclude(state=TransactionState.MINED)
    for transaction in stuck.filter(created_at__lt=now - UNATTENDED):
        if transaction.retry_at is None or transaction.retry_at < now - UNATTENDED:
            yield Violation("I7", f"{transaction}: {transaction.state}, {transaction.reason}")
