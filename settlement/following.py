"""Following: what becomes of a claim's transaction becomes of its checkpoint.

Guarantees that "confirmed" needs a final receipt and the marketplace's own event, that a block which is
gone takes its claims back with what was booked for them, that a refusal is told apart by its meaning
(for good, already claimed, or try again later), and that it moves no newer try than the one refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from settlement import checkpoints, earnings, replays
from settlement.chain.client import MinedReceipt
from settlement.chain.marketplace import Refusal
from settlement.claims import BATCH
from settlement.host_chain import HostChain
from settlement.models import (
    Checkpoint,
    CheckpointState,
    Earning,
    Transaction,
    TransactionEvent,
    TransactionState,
)
from settlement.models.checkpoint import PAID_STATES
from settlement.models.transaction import UNFINISHED
from settlement.pauses import pause

logger = logging.getLogger(__name__)

_FIRST_PAUSES = {
    Refusal.TOO_FAST: timedelta(seconds=1),
    Refusal.DISPUTE_WINDOW: timedelta(seconds=5),
}
_USUAL_FIRST_PAUSE = timedelta(seconds=10)

_QUEUED, _SENT, _MINED = CheckpointState.QUEUED, CheckpointState.SENT, CheckpointState.MINED
_REORGED = CheckpointState.REORGED
_NOT_SENT = (TransactionState.QUEUED, TransactionState.IN_PROGRESS)
_UNSUCCESSFUL = (TransactionState.FAILED, TransactionState.REVERTED, TransactionState.CANCELLED)

# A checkpoint that its transaction has left behind. A mined one that failed is not called mined: it
# waits, where it is, for the failure to be final.
_BEHIND = (
    Q(state=_QUEUED, transaction__state=TransactionState.SENT)
    | Q(state__in=(_QUEUED, _SENT), transaction__state=TransactionState.MINED, transaction__receipt__succeeded=True)
    | Q(state=_MINED, transaction__state__in=(*_NOT_SENT, TransactionState.SENT))
    | Q(state=_REORGED)
)


def follow_transactions(chain: HostChain) -> int:
    """Let checkpoints follow what became of their transactions; returns how many moved."""
    return _follow_moving(chain) + _confirm_final(chain) + _give_up_unsuccessful(chain) + _take_back_vanished(chain)


def _travelling(chain: HostChain) -> QuerySet[Checkpoint]:
    return (
        Checkpoint.objects.filter(session__deployment=chain.key, state__in=(_QUEUED, _SENT, _MINED, _REORGED))
        .select_related("session", "transaction__receipt__attempt")
        .order_by("id")
    )


def _follow_moving(chain: HostChain) -> int:
    """Sent, mined, or back from a block that is gone: the database alone can tell."""
    return sum(_step_all(rows) for rows in _batches(_travelling(chain).filter(_BEHIND)))


def _step_all(rows: Sequence[Checkpoint]) -> int:
    mined, sent, back = [], [], []
    for checkpoint in rows:
        state = _transaction(checkpoint).state
        if checkpoint.state != _REORGED and state == TransactionState.MINED:
            mined.append(checkpoint)
        elif checkpoint.state == _MINED:
            back.append(checkpoint)
        else:
            sent.append(checkpoint)
    with transaction.atomic():
        moved = len(_mine(mined)) + len(_advance(sent))
        return moved + sum(checkpoints.take_back(row, reason="block gone in a reorg") for row in back)


def _advance(rows: Sequence[Checkpoint]) -> list[Checkpoint]:
    """To ``SENT``, from wherever they are before it; returns those that are there now."""
    there = [row for row in rows if row.state == _SENT]
    for state in (_QUEUED, _REORGED):
        waiting = [row for row in rows if row.state == state]
        steps: dict[int, dict[str, object]] = {row.pk: {} for row in waiting}
        moved = checkpoints.move_all(steps, from_state=state, to_state=_SENT, still=checkpoints.as_read(waiting))
        there += _now(_SENT, waiting, moved)
    return there


def _mine(rows: Sequence[Checkpoint]) -> list[Checkpoint]:
    """To ``MINED``, by way of ``SENT``; returns those that were not there and are now."""
    ready = _advance([row for row in rows if row.state != _MINED])
    mined = checkpoints.mine_all([(row, _transaction(row).receipt.block_time) for row in ready])
    return _now(_MINED, ready, mined)


def _now(state: CheckpointState, rows: Sequence[Checkpoint], moved: set[int]) -> list[Checkpoint]:
    found = [row for row in rows if row.pk in moved]
    for row in found:
        row.state = state
    return found


def _confirm_final(chain: HostChain) -> int:
    """Final receipts: match the marketplace's events, then book."""
    confirmed = 0
    for rows in _batches(_travelling(chain).filter(transaction__state=TransactionState.FINAL)):
        receipts = chain.client.receipts([_transaction(row).receipt.attempt.hash for row in rows])
        found = [(row, mined) for row, mined in zip(rows, receipts, strict=True) if _is_where_it_was(row, mined)]
        with transaction.atomic():
            confirmed += _confirm(chain, [(row, mined) for row, mined in found if mined is not None])
    return confirmed


def _is_where_it_was(checkpoint: Checkpoint, mined: MinedReceipt | None) -> bool:
    """If it was mined anew since, the transaction manager will say in which block it is final."""
    return mined is not None and "0x" + mined.block_hash.hex() == _transaction(checkpoint).receipt.block_hash


def _confirm(chain: HostChain, found: Sequence[tuple[Checkpoint, MinedReceipt]]) -> int:
    _mine([row for row, _ in found])
    given_up = 0
    stated: list[replays.StatedClaim] = []
    for checkpoint, mined in found:
        if checkpoint.state != _MINED:
            continue
        claim = replays.matching_claim(chain, checkpoint, chain.marketplace.accepted_claims(mined.logs))
        if claim is None:
            reason = "mined without the marketplace's event for this claim"
            given_up += replays.give_up(checkpoint, reason=reason)
        else:
            claimed_at = _transaction(checkpoint).receipt.block_time
            stated.append(replays.StatedClaim(checkpoint=checkpoint, claim=claim, claimed_at=claimed_at))
    booked = replays.book(chain, stated)
    for each in booked:
        logger.info(
            "%s confirmed: %d tokens, host %d, treasury %d",
            each.checkpoint,
            each.checkpoint.tokens,
            each.claim.host_amount,
            each.claim.treasury_amount,
            extra={
                "event": "claim_confirmed",
                "checkpoint_id": each.checkpoint.pk,
                "tx_hash": each.claim.position.transaction_hash,
            },
        )
    return given_up + len(booked)


def _give_up_unsuccessful(chain: HostChain) -> int:
    """Refused, reverted or cancelled: what the refusal means decides."""
    rows = _travelling(chain).filter(transaction__state__in=_UNSUCCESSFUL)
    return sum(_unsuccessful(chain, checkpoint) for checkpoint in rows)


def _unsuccessful(chain: HostChain, checkpoint: Checkpoint) -> bool:
    row = _transaction(checkpoint)
    if checkpoint.state == _MINED:
        if not checkpoints.take_back(checkpoint, reason="block gone in a reorg"):
            return False
        checkpoint.state = _REORGED
    if row.state == TransactionState.CANCELLED:
        return checkpoints.hold(checkpoint, reason=f"its transaction was cancelled: {row.reason}")
    stated = f"{'reverted' if row.state == TransactionState.REVERTED else 'refused'}: {row.reason or row.revert}"
    meaning = chain.marketplace.meaning_of(row.revert)
    if meaning in (Refusal.ALREADY_CLAIMED, Refusal.PERMANENT):
        return replays.resolve(chain, checkpoint, stated=stated)
    first = _FIRST_PAUSES.get(meaning, _USUAL_FIRST_PAUSE)
    until = timezone.now() + pause(checkpoint.pk, tries=checkpoint.retries, first=first)
    return checkpoints.wait(checkpoint, until=until, reason=stated)


def _take_back_vanished(chain: HostChain) -> int:
    """Claims that were paid in blocks that the chain lost: their transactions are, or were, on their way again."""
    again = Transaction.objects.filter(state__in=UNFINISHED, checkpoint__state__in=PAID_STATES)
    mined_anew = TransactionEvent.objects.filter(
        what=TransactionEvent.What.LOST,
        transaction__checkpoint__state__in=PAID_STATES,
        at__gt=F("transaction__checkpoint__confirmed_at"),
    )
    # Two questions about the few that moved, and not one about all that were ever paid.
    rows = {*again.values_list("pk", flat=True), *mined_anew.values_list("transaction_id", flat=True)}
    if not rows:
        return 0
    paid = Checkpoint.objects.paid().filter(session__deployment=chain.key, transaction_id__in=rows)
    return sum(take_back_paid(checkpoint) for checkpoint in paid.select_related("session"))


def take_back_paid(checkpoint: Checkpoint) -> bool:
    """Undo a confirmation whose block the chain no longer has, and what was booked for it."""
    row = _transaction(checkpoint)
    with transaction.atomic():
        taken = checkpoints.take_back(checkpoint, reason="a final block is gone from the chain")
        if taken:
            booked = Earning.objects.live().filter(transaction_hash__in=row.attempts.values("hash"))
            for transaction_hash, block_hash in set(booked.values_list("transaction_hash", "block_hash")):
                earnings.reverse(transaction_hash=transaction_hash, block_hash=block_hash)
    if taken:
        logger.error(
            "%s was confirmed in a block that the chain no longer has",
            checkpoint,
            extra={"event": "reorg", "checkpoint_id": checkpoint.pk},
        )
    return taken


def _transaction(checkpoint: Checkpoint) -> Transaction:
    assert checkpoint.transaction is not None  # noqa: S101 - constraint a_queued_checkpoint_has_a_transaction
    return checkpoint.transaction


def _batches(rows: QuerySet[Checkpoint]) -> list[Sequence[Checkpoint]]:
    found = list(rows)
    return [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
