"""The chain's history of this host's jobs, and whether the ledger tells the same.

Guarantees to read each range of blocks once and each checkpoint once, whatever the number of jobs, and
to compare by what the marketplace's generation states: proofs by its own hash, amounts where it pays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.db.models import Min

from jobs.models import Session
from settlement.amounts import treasury_share
from settlement.chain.client import LOG_RANGE_BLOCKS
from settlement.chain.marketplace import AcceptedClaim, EndedJob
from settlement.checkpoints import parts_of_job
from settlement.host_chain import HostChain
from settlement.models import ChainCursor, Checkpoint, Closing, Receipt
from settlement.models.checkpoint import PAID_STATES, UNPAID_STATES
from settlement.violations import Violation

_RECONCILE = "Run manage.py reconcile, which reads the job's events again."
_FEE_OR_RECONCILE = (
    "If the marketplace changed its fee, this is history; if not, run manage.py reconcile, which reads the "
    "job's events again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHistory:
    """What the marketplace's events say about this ledger's jobs, by job id; ``complete`` from the first block on."""

    claims: Mapping[int, list[AcceptedClaim]]
    ends: Mapping[int, EndedJob]
    complete: bool


def read(chain: HostChain) -> ChainHistory:
    """Read the deployment's events that concern claims and ends of jobs."""
    claims: dict[int, list[AcceptedClaim]] = defaultdict(list)
    ends: dict[int, EndedJob] = {}
    head = chain.client.head().number
    first = chain.deployment.deployed_at_block
    for start in range(_earliest_known(chain) if first is None else first, head + 1, LOG_RANGE_BLOCKS):
        logs = chain.client.logs(
            addresses=chain.marketplace.addresses, from_block=start, to_block=min(start + LOG_RANGE_BLOCKS - 1, head)
        )
        by_transaction: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for log in logs:
            by_transaction[str(log["transactionHash"])].append(log)
        accepted = [
            claim for together in by_transaction.values() for claim in chain.marketplace.accepted_claims(together)
        ]
        ended = chain.marketplace.ended_jobs(logs)
        # A marketplace is of many hosts: the jobs of others are not kept.
        mine = _own_jobs(chain, {claim.job_id for claim in accepted} | {end.job_id for end in ended})
        for claim in accepted:
            if claim.job_id in mine:
                claims[claim.job_id].append(claim)
        ends.update({end.job_id: end for end in ended if end.job_id in mine})
    return ChainHistory(claims=claims, ends=ends, complete=first is not None)


def _own_jobs(chain: HostChain, job_ids: Collection[int]) -> set[int]:
    rows = Session.objects.with_job().filter(deployment=chain.key, job_id__in=job_ids)
    return {job_id for job_id in rows.values_list("job_id", flat=True) if job_id is not None}


def _earliest_known(chain: HostChain) -> int:
    """Where this ledger begins on a deployment of unknown age: its first receipt or its cursor."""
    mine = Receipt.objects.filter(transaction__chain_id=chain.deployment.chain_id)
    cursor = ChainCursor.objects.filter(deployment=chain.key).values_list("block_number", flat=True).first()
    known = [block for block in (mine.aggregate(first=Min("block_number"))["first"], cursor) if block is not None]
    return min(known, default=0)


def claims_match(chain: HostChain, history: ChainHistory) -> Iterator[Violation]:
    """I3: the same proofs, each once, with the same count and the same money, in both."""
    rows = (
        Checkpoint.objects.filter(session__deployment=chain.key, proof__isnull=False)
        .filter(state__in=(*PAID_STATES, *UNPAID_STATES))
        .select_related("session")
        .order_by("session_id", "index")
    )
    seen: set[int] = set()
    for session, group in groupby(rows.iterator(), key=lambda row: row.session):
        seen.add(session.job_id or 0)
        yield from _job_matches(chain, session, list(group), history=history)
    # Jobs that this ledger knows and has no checkpoint of, but the chain has claims for.
    others = set(history.claims) - seen
    for session in Session.objects.with_job().filter(deployment=chain.key, job_id__in=others).iterator():
        yield from _job_matches(chain, session, [], history=history)


def _job_matches(
    chain: HostChain, session: Session, rows: list[Checkpoint], *, history: ChainHistory
) -> Iterator[Violation]:
    job_id = session.job_id or 0
    by_hash = {chain.marketplace.claim_hash(bytes(row.proof or b"")): row for row in rows}
    ours = {key: row for key, row in by_hash.items() if row.state in PAID_STATES}
    theirs: dict[str, AcceptedClaim] = {}
    for claim in history.claims.get(job_id, []):
        if claim.proof_hash in theirs:
            yield Violation(
                "I3",
                f"{session}: the chain accepted proof {claim.proof_hash} twice",
                "Tell the marketplace's operator: its contract pays one proof twice.",
            )
        theirs[claim.proof_hash] = claim
    for proof_hash in ours.keys() - theirs.keys():
        yield Violation("I3", f"{ours[proof_hash]}: confirmed here, not on the chain", _RECONCILE)
    # Claims of an earlier life of this host are inherited, not checkpoints of this ledger.
    unknown = sum(claim.tokens for key, claim in theirs.items() if key not in by_hash)
    if unknown != session.tokens_inherited and (history.complete or unknown > session.tokens_inherited):
        yield Violation(
            "I3",
            f"{session}: {unknown} tokens claimed on the chain are not in this ledger, "
            f"{session.tokens_inherited} were claimed before it began",
            "Does another node use this host's key? If not, a failed checkpoint was accepted after all:"
            " manage.py checkpoints retry.",
        )
    for proof_hash in ours.keys() & theirs.keys():
        yield from _claim_matches(
            ours[proof_hash], theirs[proof_hash], paid=chain.marketplace.capabilities.pays_on_claim
        )
    yield from _end_matches(session, list(ours.values()), history.ends.get(job_id))


def _claim_matches(row: Checkpoint, claim: AcceptedClaim, *, paid: bool) -> Iterator[Violation]:
    stated: tuple[int | None, ...] = (claim.tokens,)
    booked: tuple[int | None, ...] = (row.tokens,)
    if paid:
        stated += (claim.host_amount, claim.treasury_amount)
        booked += (row.host_amount, row.treasury_amount)
    if booked != stated:
        yield Violation(
            "I3", f"{row}: the chain says {stated} (tokens, host, treasury), this ledger {booked}", _RECONCILE
        )


def _end_matches(session: Session, rows: list[Checkpoint], ended: EndedJob | None) -> Iterator[Violation]:
    """Where the end of the job pays, the parts of its claims are together what it paid."""
    credited = [row.host_amount for row in rows if row.host_amount is not None]
    if ended is None or not ended.settles or not credited or session.tokens_inherited:
        return
    if sum(credited) != ended.host_amount:
        yield Violation(
            "I3",
            f"{session}: its end paid the host {ended.host_amount} base units, its checkpoints hold {sum(credited)}",
            _RECONCILE,
        )


def splits_are_right(chain: HostChain, *, fee_basis_points: int) -> Iterator[Violation]:
    """I4: each claim's parts as the contract computes them, in integer units."""
    rows = (
        Checkpoint.objects.paid()
        .filter(session__deployment=chain.key, host_amount__isnull=False)
        .select_related("session")
        .order_by("session_id", "index")
    )
    if chain.marketplace.capabilities.pays_on_claim:
        for row in rows.iterator():
            gross = row.session.worth(row.tokens)
            treasury = treasury_share(gross, fee_basis_points=fee_basis_points)
            yield from _split_is(row, gross=gross, host=gross - treasury)
        return
    ends = {
        closing.session_id: closing
        for closing in Closing.objects.filter(session__deployment=chain.key, paid_gross__isnull=False).iterator()
    }
    for session, group in groupby(rows.iterator(), key=lambda row: row.session):
        closing, claims = ends.get(session.pk), list(group)
        if closing is None or closing.paid_gross is None or closing.paid_host is None:
            yield Violation("I4", f"{session}: its claims are credited and its end is not known", _RECONCILE)
            continue
        tokens = [row.tokens for row in claims]
        parts = parts_of_job(session, tokens, gross=closing.paid_gross, host_amount=closing.paid_host)
        for row, (gross, host) in zip(claims, parts, strict=True):
            yield from _split_is(row, gross=gross, host=host)


def _split_is(row: Checkpoint, *, gross: int, host: int) -> Iterator[Violation]:
    booked = (row.gross, row.host_amount, row.treasury_amount)
    computed = (gross, host, gross - host)
    if booked != computed:
        yield Violation(
            "I4",
            f"{row}: booked {booked} (gross, host, treasury), the contract's rule gives {computed}",
            "Did the marketplace change its fee? Then this is history; if not, "
            + _RECONCILE[0].lower()
            + _RECONCILE[1:],
        )
