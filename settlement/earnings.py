"""Earnings: money that moved, booked from the chain's events only.

Guarantees one standing row per event, so that reading a block twice books nothing twice; that an event
whose block a reorg took away is taken back by a row of its own before it is booked in its new block; and
that the gas of every final transaction is booked, whatever it was for. Amounts are base units of the
token named; gas is in wei.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from jobs.models import Session
from settlement.chain.marketplace import NATIVE_COIN, AcceptedClaim, EndedJob, LogPosition
from settlement.chain.marketplace import Withdrawal as Withdrawn
from settlement.host_chain import HostChain
from settlement.models import Attempt, Earning, EarningKind, GasCursor, Receipt, Transaction, TransactionState
from settlement.models.earning import EarningQuerySet, TotalContended

NO_LOG = -1
"""The index of what a transaction's receipt states, rather than one of its logs."""

_PAGE = 500
# PostgreSQL may show a row before one with a lower id that is still being committed. None takes so long.
_COMMITTED_AFTER = timedelta(minutes=5)
# Of booking a page; another try is needed only where two workers book the same event at the same moment.
_TRIES = 10
# Nothing but a reorg changes a transaction in these states; where it has a receipt, its gas is gone.
_OVER = (TransactionState.FINAL, TransactionState.REVERTED, TransactionState.CANCELLED)
_GAS_OF_RECEIPT = Earning.objects.live().filter(
    kind=EarningKind.GAS,
    transaction_hash=OuterRef("receipt__attempt__hash"),
    block_hash=OuterRef("receipt__block_hash"),
)
# Keys of a job's transactions: what for, the deployment (HostChain.key), the job, and what follows.
_JOB_KEY = re.compile(r"[a-z_]+:([0-9]+:0x[0-9a-f]{40}(?::0x[0-9a-f]+)?):([0-9]+)(?::|$)")


class BookedDifferently(Exception):
    """An event is booked already with another amount or token: two readings of one event disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Money that moved, as an event states it; ``at`` is the block's time where it is known."""

    kind: EarningKind
    amount: int
    token: str
    position: LogPosition
    deployment: str
    session_id: int | None
    at: datetime | None

    @property
    def event(self) -> tuple[str, str, int, str]:
        """What names the event among the earning rows."""
        return self.deployment, self.position.transaction_hash.lower(), self.position.log_index, str(self.kind)


def movements_of_claim(
    claim: AcceptedClaim, *, deployment: str, session_id: int, at: datetime | None = None
) -> list[Movement]:
    """What a claim paid to the host and to the treasury, to be booked together with others."""
    shares = (
        (EarningKind.HOST, claim.host_amount, claim.host_position),
        (EarningKind.TREASURY, claim.treasury_amount, claim.treasury_position),
    )
    return [
        Movement(
            kind=kind,
            amount=amount,
            token=claim.token,
            position=position,
            deployment=deployment,
            session_id=session_id,
            at=at,
        )
        for kind, amount, position in shares
        if position is not None
    ]


def book_claim(claim: AcceptedClaim, *, deployment: str, session_id: int, at: datetime | None = None) -> None:
    """What a claim paid to the host and to the treasury; ``at`` is the block's time."""
    book(movements_of_claim(claim, deployment=deployment, session_id=session_id, at=at))


def book_job_payment(
    ended: EndedJob, *, token: str, deployment: str, session_id: int, gross: int, at: datetime | None = None
) -> None:
    """What the end of a job paid, where claims do not pay: the host as the event says, the treasury the rest."""
    if not ended.settles:
        return
    shares = ((EarningKind.HOST, ended.host_amount), (EarningKind.TREASURY, gross - ended.host_amount))
    book(
        [
            Movement(
                kind=kind,
                amount=amount,
                token=token,
                position=ended.position,
                deployment=deployment,
                session_id=session_id,
                at=at,
            )
            for kind, amount in shares
        ]
    )


def book_refund(ended: EndedJob, *, token: str, deployment: str, session_id: int, at: datetime | None = None) -> None:
    """What went back to the depositor when the job ended."""
    book(
        [
            Movement(
                kind=EarningKind.REFUND,
                amount=ended.refund,
                token=token,
                position=ended.position,
                deployment=deployment,
                session_id=session_id,
                at=at,
            )
        ]
    )


def book_withdrawal(withdrawn: Withdrawn, *, deployment: str, at: datetime | None = None) -> None:
    """What the host took out of its earnings, by this node or by hand."""
    book(
        [
            Movement(
                kind=EarningKind.WITHDRAWAL,
                amount=withdrawn.amount,
                token=withdrawn.token,
                position=withdrawn.position,
                deployment=deployment,
                session_id=None,
                at=at,
            )
        ]
    )


def book_sweep(amount: int, *, token: str, position: LogPosition, deployment: str, at: datetime | None = None) -> None:
    """What went from the host to the operator's address."""
    book(
        [
            Movement(
                kind=EarningKind.SWEEP,
                amount=amount,
                token=token,
                position=position,
                deployment=deployment,
                session_id=None,
                at=at,
            )
        ]
    )


def movement_of_gas(receipt: Receipt, *, deployment: str, session_id: int | None) -> Movement:
    """What a transaction of the host cost, whether or not it succeeded."""
    return Movement(
        kind=EarningKind.GAS,
        amount=receipt.fee,
        token=NATIVE_COIN,
        position=position_of(receipt),
        deployment=deployment,
        session_id=session_id,
        at=receipt.block_time,
    )


def position_of(receipt: Receipt) -> LogPosition:
    """Where what a receipt itself states stands in the chain."""
    return LogPosition(
        transaction_hash=receipt.attempt.hash,
        log_index=NO_LOG,
        block_number=receipt.block_number,
        block_hash=receipt.block_hash,
    )


def reverse(*, transaction_hash: str, block_hash: str) -> int:
    """Take back all that was booked from a transaction in a block that is gone; returns how many rows."""
    gone = Earning.objects.live().filter(transaction_hash=transaction_hash, block_hash=block_hash)
    return _take_back(gone)


def _take_back(rows: EarningQuerySet) -> int:
    taken = 0
    with transaction.atomic():
        for row in rows.order_by("id"):
            _, created = Earning.objects.get_or_create(
                reverses=row,
                defaults={
                    "deployment": row.deployment,
                    "session_id": row.session_id,
                    "kind": row.kind,
                    "token": row.token,
                    "amount": row.amount,
                    "transaction_hash": row.transaction_hash,
                    "log_index": row.log_index,
                    "block_number": row.block_number,
                    "block_hash": row.block_hash,
                    "occurrence": row.occurrence,
                    # The day of the row taken back, so that its day's sum comes out right.
                    "at": row.at,
                },
            )
            taken += created
            if row.kind == EarningKind.GAS:
                _look_again(row)
    return taken


def _look_again(gas: Earning) -> None:
    """Gas that was taken back is booked anew when its transaction is final again."""
    attempt = Attempt.objects.filter(hash=gas.transaction_hash).first()
    if attempt is not None:
        GasCursor.objects.filter(deployment=gas.deployment, transaction_id__gte=attempt.transaction_id).update(
            transaction_id=attempt.transaction_id - 1
        )


def book_gas_due(chain: HostChain, *, from_start: bool = False) -> int:
    """Book the gas of final transactions of this host that have none yet; returns how many.

    Reads on from a cursor below which every transaction is over and booked; ``from_start`` reads all.
    """
    if chain.host is None:
        return 0
    chain_id, sender = chain.deployment.chain_id, chain.host.lower()
    cursor, _ = GasCursor.objects.get_or_create(deployment=chain.key)
    here = 0 if from_start else cursor.transaction_id
    # Asked for first: what becomes final while this runs is found by the next run. The newest before the
    # unfinished ones: what is committed between the two questions is above it, and not taken for finished.
    own = Transaction.objects.filter(chain_id=chain_id, sender=sender)
    # Of anybody's: asked for those of a sender, a database reads all that it ever had.
    old = Transaction.objects.filter(created_at__lte=timezone.now() - _COMMITTED_AFTER)
    newest = old.order_by("-pk").values_list("pk", flat=True).first() or 0
    oldest_unfinished = own.unfinished().order_by("pk").values_list("pk", flat=True).first()
    done = newest if oldest_unfinished is None else min(newest, oldest_unfinished - 1)
    booked = 0
    facts = Transaction.objects.order_by("pk").values_list("pk", "chain_id", "sender", "state")
    while page := list(facts.filter(pk__gt=here)[:_PAGE]):
        # Chosen here, for the same reason.
        over = [pk for pk, *who, state in page if who == [chain_id, sender] and state in _OVER]
        due = Transaction.objects.filter(pk__in=over, receipt__isnull=False)
        if not from_start:
            # Above the cursor lies what was booked in the last minutes, and need not be compared each time.
            due = due.filter(~Exists(_GAS_OF_RECEIPT))
        rows = due.select_related("receipt__attempt", "checkpoint").order_by("pk")
        # Asked again: a reorg may have taken one back meanwhile.
        booked += _book_page(chain, [row for row in rows if row.state in _OVER])
        here = page[-1][0]
    GasCursor.objects.filter(pk=cursor.pk, transaction_id=cursor.transaction_id).update(transaction_id=done)
    return booked


def _book_page(chain: HostChain, page: Sequence[Transaction]) -> int:
    movements = []
    for row in page:
        deployment, session_id = _served_by(row, chain=chain)
        movements.append(movement_of_gas(row.receipt, deployment=deployment, session_id=session_id))
    return book(movements)


def _served_by(row: Transaction, *, chain: HostChain) -> tuple[str, int | None]:
    """The deployment and session that a transaction was made for, by its checkpoint or its key."""
    found = _JOB_KEY.match(row.key)
    if found is None:
        return chain.key, None
    checkpoint = getattr(row, "checkpoint", None)
    if checkpoint is not None:
        return found[1], checkpoint.session_id
    is_withdrawal = row.key.startswith(("withdraw:", "sweep:"))
    session = None if is_withdrawal else Session.objects.filter(deployment=found[1], job_id=int(found[2])).first()
    return found[1], None if session is None else session.pk


def book(movements: Sequence[Movement]) -> int:
    """Book events, each once; returns how many rows that took. Raises ``BookedDifferently``."""
    for _ in range(_TRIES):
        try:
            with transaction.atomic():
                rows = _unbooked(movements)
                Earning.objects.write(rows)
        except IntegrityError:
            # Another worker booked one of them since it was looked for; it is found now.
            continue
        return len(rows)
    raise TotalContended(f"{len(movements)} movements, the first at {movements[0].position}")


def _unbooked(movements: Sequence[Movement]) -> list[Earning]:
    """A row for each event that has none standing, after what stood in other blocks was taken back."""
    hashes = {movement.position.transaction_hash.lower() for movement in movements}
    # Of every deployment: asked for those of one, SQLite reads all that it ever had.
    booked = Earning.objects.filter(transaction_hash__in=hashes)
    _take_back_moved(booked, movements)
    last: dict[tuple[str, str, int, str], Earning] = {}
    for row in booked.bookings().select_related("reversal").order_by("occurrence"):
        last[row.deployment, row.transaction_hash, row.log_index, row.kind] = row
    missing: dict[tuple[str, str, int, str], Earning] = {}
    for movement in movements:
        before = missing.get(movement.event, last.get(movement.event))
        if before is not None and (before.pk is None or not hasattr(before, "reversal")):
            if (before.amount, before.token.lower()) != (movement.amount, movement.token.lower()):
                raise BookedDifferently(f"{before} of {movement.position} is now {movement.amount} of {movement.token}")
            continue
        missing[movement.event] = _row(movement, occurrence=0 if before is None else before.occurrence + 1)
    return list(missing.values())


def _take_back_moved(booked: EarningQuerySet, movements: Sequence[Movement]) -> None:
    """A transaction stands in one block. What was booked from another block is no longer true."""
    stands = {(each.deployment, each.position.transaction_hash.lower()): each.position.block_hash for each in movements}
    live = booked.live()
    blocks = live.values_list("deployment", "transaction_hash", "block_hash").order_by().distinct()
    for deployment, transaction_hash, block_hash in blocks:
        if stands.get((deployment, transaction_hash), block_hash).lower() != block_hash:
            gone = Earning.objects.live().filter(deployment=deployment, transaction_hash=transaction_hash)
            _take_back(gone.filter(block_hash=block_hash))


def _row(movement: Movement, *, occurrence: int) -> Earning:
    position = movement.position
    return Earning(
        deployment=movement.deployment,
        session_id=movement.session_id,
        kind=movement.kind,
        token=movement.token.lower(),
        amount=movement.amount,
        transaction_hash=position.transaction_hash.lower(),
        log_index=position.log_index,
        block_number=position.block_number,
        block_hash=position.block_hash.lower(),
        occurrence=occurrence,
        at=movement.at or timezone.now(),
    )
