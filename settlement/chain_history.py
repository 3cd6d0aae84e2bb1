"""The chain's history of this host's jobs, and whether the ledger tells the same.

Guarantees to read each range of blocks once, whatever the number of jobs, and to keep no more of it than
which claims were seen; compares by what the marketplace's generation states: proofs by its own hash,
amounts where it pays. What moves while it reads is no difference.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from django.db.models import Min, QuerySet
from django.utils import timezone

from jobs.models import Session
from settlement.amounts import treasury_share
from settlement.chain.client import LOG_RANGE_BLOCKS, ChainUnavailable
from settlement.chain.marketplace import AcceptedClaim, EndedJob
from settlement.checkpoints import parts_of_job
from settlement.host_chain import HostChain
from settlement.models import ChainCursor, Checkpoint, Closing, Receipt
from settlement.models.checkpoint import PAID_STATES, UNPAID_STATES
from settlement.replays import first_block_since
from settlement.txmanager.finality import final_height
from settlement.violations import Violation

_RECONCILE = "Run manage.py reconcile, which reads the job's events again."
_FEE_OR_RECONCILE = (
    "If the marketplace changed its fee, this is history; if not, run manage.py reconcile, which reads the "
    "job's events again."
)
# Before the last comparison: what was on its way then, with all the patience that finality may ask for.
OVERLAP = timedelta(days=1)
_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The final blocks that a comparison is about, ``first`` to ``last``; it began at ``begun``.

    ``complete`` if no claim can be in an earlier block, ``whole`` if earlier blocks, should there be any,
    are not those of an earlier comparison.
    """

    first: int
    last: int
    whole: bool
    complete: bool
    begun: datetime

    def paid(self, chain: HostChain) -> QuerySet[Checkpoint]:
        """Checkpoints that the chain has to have accepted in these blocks."""
        # Confirmed meanwhile: its block may have come after the last one here.
        rows = Checkpoint.objects.paid().filter(session__deployment=chain.key, confirmed_at__lte=self.begun)
        if self.whole:
            return rows
        # By its own receipt: that of a claim which another wallet sent is not known here.
        receipts = Receipt.objects.filter(succeeded=True, block_number__range=(self.first, self.last))
        return rows.filter(transaction__in=receipts.values("transaction"))


def whole(chain: HostChain) -> Stretch:
    """All there ever was of this deployment."""
    begun, first = timezone.now(), chain.deployment.deployed_at_block
    return Stretch(
        first=_earliest_known(chain) if first is None else first,
        last=final_height(chain.client, limits=chain.limits),
        whole=True,
        complete=first is not None,
        begun=begun,
    )


def since(chain: HostChain, ago: timedelta) -> Stretch:
    """From a day before the last comparison, ``ago`` by the chain's clock and not by this host's, which may be wrong.

    Public nodes let nobody read all of a chain every hour.
    """
    begun, last = timezone.now(), final_height(chain.client, limits=chain.limits)
    newest = chain.client.block(last) if last >= 0 else None
    if newest is None:
        raise ChainUnavailable(f"the node that answers has no final block {last}")
    first = first_block_since(chain.client, newest.time - ago - OVERLAP, head=last)
    deployed_at = chain.deployment.deployed_at_block or 0
    return Stretch(first=max(first, deployed_at), last=last, whole=False, complete=False, begun=begun)


def _sessions(chain: HostChain) -> QuerySet[Session]:
    return Session.objects.with_job().filter(deployment=chain.key)


def _earliest_known(chain: HostChain) -> int:
    """Where this ledger begins on a deployment of unknown age: its first receipt or its cursor."""
    mine = Receipt.objects.filter(transaction__chain_id=chain.deployment.chain_id)
    cursor = ChainCursor.objects.filter(deployment=chain.key).values_list("block_number", flat=True).first()
    known = [block for block in (mine.aggregate(first=Min("block_number"))["first"], cursor) if block is not None]
    return min(known, default=0)


def events_of_job(chain: HostChain, job_id: int) -> tuple[list[AcceptedClaim], EndedJob | None]:
    """A job's accepted claims in their order, and its end if it has ended."""
    found: list[AcceptedClaim] = []
    ended = None
    for claims, ends in _parts(chain, whole(chain)):
        found += [claim for claim in claims if claim.job_id == job_id]
        ended = next((end for end in ends if end.job_id == job_id), ended)
    return found, ended


def claims_match(chain: HostChain, stretch: Stretch) -> Iterator[Violation]:
    """I3: the same proofs, each once, with the same count and the same money, in both."""
    seen: set[int] = set()
    unknown: Counter[int] = Counter()
    for claims, ends in _parts(chain, stretch):
        jobs = _jobs(chain, {claim.job_id for claim in claims} | {end.job_id for end in ends})
        for start in range(0, len(claims), _PAGE):
            # A marketplace is of many hosts: the jobs of others are nothing to this ledger.
            mine = [claim for claim in claims[start : start + _PAGE] if claim.job_id in jobs]
            yield from _known_claims(chain, mine, seen=seen, unknown=unknown)
        for end in ends:
            if end.job_id in jobs:
                yield from _end_matches(jobs[end.job_id], end)
    for pk in stretch.paid(chain).values_list("pk", flat=True).order_by("pk").iterator():
        if pk not in seen:
            row = Checkpoint.objects.select_related("session").get(pk=pk)
            yield Violation("I3", f"{row}: confirmed here, not on the chain", _RECONCILE)
    yield from _inherited(chain, stretch, unknown)


def _parts(chain: HostChain, stretch: Stretch) -> Iterator[tuple[list[AcceptedClaim], list[EndedJob]]]:
    """Claims and ends of jobs, range by range. Raises ``ChainUnavailable``."""
    for start in range(stretch.first, stretch.last + 1, LOG_RANGE_BLOCKS):
        end = min(start + LOG_RANGE_BLOCKS - 1, stretch.last)
        logs = chain.client.complete_logs(addresses=chain.marketplace.addresses, from_block=start, to_block=end)
        by_transaction: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for log in logs:
            by_transaction[str(log["transactionHash"])].append(log)
        claims = [
            claim for together in by_transaction.values() for claim in chain.marketplace.accepted_claims(together)
        ]
        yield claims, chain.marketplace.ended_jobs(logs)


def _jobs(chain: HostChain, job_ids: Collection[int]) -> dict[int, Session]:
    rows = _sessions(chain).filter(job_id__in=job_ids)
    return {row.job_id: row for row in rows if row.job_id is not None}


def _known_claims(
    chain: HostChain, claims: Sequence[AcceptedClaim], *, seen: set[int], unknown: Counter[int]
) -> Iterator[Violation]:
    """Compare claims with their checkpoints; what has none is added to ``unknown``, in tokens by job."""
    # Nothing else in the question: a database asked for states and jobs as well reads all that have them.
    hashes = {claim.proof_hash for claim in claims}
    found = Checkpoint.objects.exclude(proof_hash="").filter(proof_hash__in=hashes).select_related("session")
    rows = {
        (row.session.job_id, row.proof_hash): row
        for row in found
        if row.session.deployment == chain.key and row.state in (*PAID_STATES, *UNPAID_STATES)
    }
    for claim in claims:
        row = rows.get((claim.job_id, claim.proof_hash))
        if row is None or chain.marketplace.claim_hash(bytes(row.proof or b"")) != claim.proof_hash:
            unknown[claim.job_id] += claim.tokens
            continue
        if row.pk in seen:
            yield Violation(
                "I3",
                f"{row}: the chain accepted proof {claim.proof_hash} twice",
                "Tell the marketplace's operator: its contract pays one proof twice.",
            )
        seen.add(row.pk)
        # One that is not confirmed yet is on its way.
        if row.state in PAID_STATES:
            yield from _claim_matches(row, claim, paid=chain.marketplace.capabilities.pays_on_claim)


def _inherited(chain: HostChain, stretch: Stretch, unknown: Mapping[int, int]) -> Iterator[Violation]:
    """Claims of an earlier life of this host are inherited, not checkpoints of this ledger."""
    sessions = _sessions(chain)
    found = list(sessions.filter(job_id__in=list(unknown)))
    if stretch.complete:
        # One that was taken over meanwhile may have claims in blocks that were read before it was known.
        known = sessions.filter(tokens_inherited__gt=0, created_at__lte=stretch.begun)
        found += known.exclude(job_id__in=list(unknown))
    for session in found:
        tokens = unknown.get(session.job_id or 0, 0)
        if tokens == session.tokens_inherited or (tokens < session.tokens_inherited and not stretch.complete):
            continue
        yield Violation(
            "I3",
            f"{session}: {tokens} tokens claimed on the chain are not in this ledger, "
            f"{session.tokens_inherited} were claimed before it began",
            "Does another node use this host's key? If not, a failed checkpoint was accepted after all:"
            " manage.py checkpoints retry.",
        )


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


def _end_matches(session: Session, ended: EndedJob) -> Iterator[Violation]:
    """Where the end of the job pays, the parts of its claims are together what it paid."""
    rows = Checkpoint.objects.paid().filter(session=session).values_list("host_amount", flat=True)
    credited = [amount for amount in rows if amount is not None]
    if not ended.settles or not credited or session.tokens_inherited:
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
        .defer("proof")
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
            _FEE_OR_RECONCILE,
        )
