"""The confirmer: receipts for what was sent, until they are final.

Guarantees that any attempt of a transaction may win (invariant 7); that "final" needs the receipt's
block to be the canonical one at its height and below the point of finality (invariant 10); that a reorg takes
the transaction back to "sent" (invariant 12). Reads only what is unfinished. Does not interpret events;
the domain does, from the receipt's transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Case, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from settlement.chain.client import Block, CallReverted, ChainClient, Inclusion, MinedReceipt, NodeRefused
from settlement.models import (
    Attempt,
    AttemptKind,
    AttemptState,
    Receipt,
    Transaction,
    TransactionState,
)
from settlement.txmanager import displacement, events, vanished
from settlement.txmanager.finality import final_height
from settlement.txmanager.limits import Limits
from settlement.txmanager.raw_call import raw_call
from settlement.txmanager.turn import in_nonce_order

logger = logging.getLogger(__name__)

_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    """An attempt in a canonical block, and why it reverted if it did (name, and in full)."""

    attempt: Attempt
    receipt: MinedReceipt
    block: Block
    revert: tuple[str, str]


def watch(client: ChainClient, *, sender: str, limits: Limits) -> int:
    """Look for receipts and re-check those that are not final; returns how many rows moved."""
    mine = Transaction.objects.filter(chain_id=client.chain_id, sender=sender)
    if not mine.filter(nonce__isnull=False).exists():
        return 0
    mined_count = client.transaction_count(sender)
    moved = vanished.take_back_lost(client, sender=sender, mined_count=mined_count)
    sent = in_nonce_order(mine.filter(state=TransactionState.SENT).prefetch_related("attempts"))
    if sent:
        # Before the receipts: what is mined in between must not look as if another had used its nonce.
        used = displacement.finally_used(client, sender=sender, rows=sent, mined_count=mined_count, limits=limits)
        for start in range(0, len(sent), _CHUNK):
            moved += _look_for_receipts(client, sent[start : start + _CHUNK], used=used)
    mined = list(
        Receipt.objects.filter(transaction__in=mine.filter(state=TransactionState.MINED))
        .select_related("transaction", "attempt")
        .order_by("block_number")
    )
    if mined:
        moved += _check_final(client, mined, limits=limits)
    return moved


def _look_for_receipts(client: ChainClient, rows: Sequence[Transaction], *, used: int) -> int:
    """Record what is mined of ``rows``; ``used`` nonces are finally taken on the chain."""
    attempts = [attempt for row in rows for attempt in row.attempts.all() if attempt.nonce == row.nonce]
    found = client.inclusions([attempt.hash for attempt in attempts])
    mined = []
    seen = set()
    for attempt, inclusion in zip(attempts, found, strict=True):
        if inclusion is None:
            continue
        seen.add(attempt.transaction_id)
        # A preconfirmed or an orphaned receipt: not mined as far as the canonical chain goes.
        if inclusion.is_canonical:
            mined.append(_as_mined(client, attempt, inclusion))
    moved = _record(mined) if mined else 0
    missing = [row for row in rows if row.pk not in seen]
    return moved + displacement.observe(client, missing, used=used)


def _as_mined(client: ChainClient, attempt: Attempt, inclusion: Inclusion) -> _Mined:
    receipt = inclusion.receipt
    revert = ("", "") if receipt.succeeded else _why_it_reverted(client, attempt, receipt)
    return _Mined(attempt=attempt, receipt=receipt, block=inclusion.block, revert=revert)


def _record(mined: Sequence[_Mined]) -> int:
    """``sent`` to ``mined``, with the receipts; all in one commit, or one by one if another was faster with some."""
    if _store(mined):
        return len(mined)
    return 0 if len(mined) == 1 else sum(_record([each]) for each in mined)


def _store(mined: Sequence[_Mined]) -> bool:
    """Whether all of them were still waiting for this; else nothing is stored."""
    winners = {each.attempt.transaction_id: each.attempt for each in mined}
    nonces = Case(*(When(pk=row_id, then=Value(attempt.nonce)) for row_id, attempt in winners.items()))
    with transaction.atomic():
        waiting = Transaction.objects.filter(pk__in=winners, state=TransactionState.SENT, nonce=nonces)
        if waiting.update(state=TransactionState.MINED, reason="", retry_at=None, observed_missing=0) != len(mined):
            transaction.set_rollback(True)
            return False
        Receipt.objects.bulk_create([_receipt(each) for each in mined])
        won = Attempt.objects.filter(pk__in=[attempt.pk for attempt in winners.values()])
        won.update(state=AttemptState.MINED, sent_at=Coalesce("sent_at", timezone.now()))
        Attempt.objects.filter(transaction__in=winners, state=AttemptState.SENT).update(state=AttemptState.REPLACED)
        for each in mined:
            if not each.receipt.succeeded:
                row = Transaction.objects.filter(pk=each.attempt.transaction_id)
                row.update(reason=each.revert[1][:500])
    return True


def _receipt(mined: _Mined) -> Receipt:
    receipt = mined.receipt
    return Receipt(
        transaction_id=mined.attempt.transaction_id,
        attempt=mined.attempt,
        block_number=receipt.block_number,
        block_hash="0x" + receipt.block_hash.hex(),
        block_time=mined.block.time,
        succeeded=receipt.succeeded,
        gas_used=receipt.gas_used,
        effective_gas_price=receipt.effective_gas_price,
        l1_fee=receipt.l1_fee,
        revert=mined.revert[0][:200],
        revert_reason=mined.revert[1][:500],
    )


def _why_it_reverted(client: ChainClient, attempt: Attempt, receipt: MinedReceipt) -> tuple[str, str]:
    """Why a mined attempt failed, by name and in full: its call replayed on the state after its block."""
    if receipt.gas_used >= attempt.gas_limit:
        return "OutOfGas", f"out of gas: all of {attempt.gas_limit} was used"
    try:
        client.call(raw_call(attempt.transaction), sender=attempt.transaction.sender, block=hex(receipt.block_number))
    except CallReverted as reverted:
        return reverted.revert.name, str(reverted.revert)
    except NodeRefused as refused:
        return "", f"reverted; the node does not say why ({refused.message})"
    return "", "reverted; the call succeeds on the state after its block"


def _check_final(client: ChainClient, receipts: Sequence[Receipt], *, limits: Limits) -> int:
    heights = sorted({receipt.block_number for receipt in receipts})

    def read(node: ChainClient) -> tuple[int, list[Block | None]]:
        # The point of finality first: a block that is canonical after it was read is so at that point.
        return final_height(node, limits=limits), node.blocks(heights)

    final, blocks = client.on_one_node(read)
    hashes = vanished.hashes_of(heights, blocks)
    canonical = {receipt.pk: hashes[receipt.block_number] == receipt.block_hash for receipt in receipts}
    gone = [receipt for receipt in receipts if not canonical[receipt.pk]]
    done = [receipt for receipt in receipts if canonical[receipt.pk] and receipt.block_number <= final]
    return sum(vanished.take_back(receipt) for receipt in gone) + _finish(done)


def _finish(receipts: Sequence[Receipt]) -> int:
    """``mined`` to how it ended, in one commit."""
    ended: dict[tuple[TransactionState, str], list[int]] = {}
    for receipt in receipts:
        ended.setdefault(_end(receipt), []).append(receipt.transaction_id)
    with transaction.atomic():
        for row_id in ended.get((TransactionState.CANCELLED, ""), ()):
            Transaction.objects.filter(pk=row_id).update(reason=events.why_cancelled(row_id))
        return sum(
            Transaction.objects.filter(pk__in=row_ids, state=TransactionState.MINED).update(state=state, revert=revert)
            for (state, revert), row_ids in ended.items()
        )


def _end(receipt: Receipt) -> tuple[TransactionState, str]:
    """The state that a final receipt decides, and the name of a revert."""
    if receipt.attempt.kind == AttemptKind.CANCEL:
        return TransactionState.CANCELLED, ""
    return (TransactionState.FINAL, "") if receipt.succeeded else (TransactionState.REVERTED, receipt.revert)
