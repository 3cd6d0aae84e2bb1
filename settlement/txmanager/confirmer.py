"""The confirmer: receipts for what was sent, until they are final.

Guarantees that any attempt of a transaction may win; that "final" needs the receipt's block to be
the canonical one at its height and deep enough; and that a reorg takes the transaction back to
"sent". Does not interpret events; the domain does, from the receipt's transaction.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.utils import timezone

from settlement.chain.client import Block, CallReverted, ChainClient, MinedReceipt
from settlement.models import Attempt, AttemptState, Receipt, Transaction, TransactionState
from settlement.txmanager.broadcaster import RESEND_AFTER
from settlement.txmanager.raw_call import raw_call

logger = logging.getLogger(__name__)


def watch(client: ChainClient, *, sender: str, confirmations: int) -> int:
    """Look for receipts and re-check those that are not final; returns how many rows moved."""
    moved = 0
    rows = Transaction.objects.filter(chain_id=client.chain_id, sender=sender)
    waiting = rows.filter(state__in=(TransactionState.SENT, TransactionState.MINED)).order_by("nonce")
    head: Block | None = None
    for row in waiting:
        # A block that is newer than the head seen first would look not final; read it again.
        head = client.head()
        if row.state == TransactionState.SENT:
            moved += _look_for_receipt(client, row)
            row.refresh_from_db()
        if row.state == TransactionState.MINED:
            moved += _check_final(client, row, head=head, confirmations=confirmations)
    return moved


def _look_for_receipt(client: ChainClient, row: Transaction) -> bool:
    for attempt in row.attempts.order_by("-id"):
        mined = client.receipt(attempt.hash)
        if mined is not None:
            return _record_receipt(client, row, attempt, mined)
    return False


def _record_receipt(client: ChainClient, row: Transaction, attempt: Attempt, mined: MinedReceipt) -> bool:
    block = client.block(mined.block_number)
    if block is None or block.hash != mined.block_hash:
        # A preconfirmed or an orphaned receipt: not mined as far as the canonical chain goes.
        return False
    reason = "" if mined.succeeded else _revert_reason(client, row, mined)
    with transaction.atomic():
        moved = Transaction.objects.filter(pk=row.pk, state=TransactionState.SENT).update(
            state=TransactionState.MINED, reason=reason[:500], retry_at=None
        )
        if not moved:
            return False
        Receipt.objects.update_or_create(
            transaction=row,
            defaults={
                "attempt": attempt,
                "block_number": mined.block_number,
                "block_hash": "0x" + mined.block_hash.hex(),
                "block_time": block.time,
                "succeeded": mined.succeeded,
                "gas_used": mined.gas_used,
                "effective_gas_price": mined.effective_gas_price,
                "revert_reason": reason[:500],
            },
        )
        row.attempts.exclude(pk=attempt.pk).filter(state=AttemptState.SENT).update(state=AttemptState.REPLACED)
        Attempt.objects.filter(pk=attempt.pk).update(
            state=AttemptState.MINED, sent_at=attempt.sent_at or timezone.now()
        )
    return True


def _revert_reason(client: ChainClient, row: Transaction, mined: MinedReceipt) -> str:
    """Why a mined transaction failed, by replaying it on the block before."""
    try:
        client.call(raw_call(row), sender=row.sender, block=hex(mined.block_number))
    except CallReverted as reverted:
        return str(reverted.revert)
    return "reverted; the call succeeds on the state after its block"


def _check_final(client: ChainClient, row: Transaction, *, head: Block, confirmations: int) -> bool:
    receipt = Receipt.objects.select_related("attempt").get(transaction=row)
    block = client.block(receipt.block_number)
    if block is None or "0x" + block.hash.hex() != receipt.block_hash:
        return _take_back(row, receipt)
    if head.number - receipt.block_number + 1 < confirmations:
        return False
    final = TransactionState.FINAL if receipt.succeeded else TransactionState.REVERTED
    return bool(Transaction.objects.filter(pk=row.pk, state=TransactionState.MINED).update(state=final))


def _take_back(row: Transaction, receipt: Receipt) -> bool:
    logger.warning(
        "a reorg took block %s with %s",
        receipt.block_number,
        row.key,
        extra={"event": "reorg", "tx_hash": receipt.attempt.hash},
    )
    with transaction.atomic():
        moved = Transaction.objects.filter(pk=row.pk, state=TransactionState.MINED).update(
            state=TransactionState.SENT, reason="block gone in a reorg"
        )
        if moved:
            # Old enough to be sent again at once.
            Attempt.objects.filter(pk=receipt.attempt_id).update(
                state=AttemptState.SENT, sent_at=timezone.now() - RESEND_AFTER
            )
            receipt.delete()
    return bool(moved)
