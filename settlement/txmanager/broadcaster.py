"""The broadcaster: from a queued transaction to signed bytes that a node has accepted.

Guarantees that a signed attempt is committed before any node sees it, that a restart re-sends the
stored bytes, and that no error takes a new nonce. Does not guarantee delivery: the confirmer watches
for receipts, and asks here for the bytes to be sent again while there are none.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import transaction
from django.utils import timezone
from hexbytes import HexBytes

from settlement.chain.client import CallReverted, ChainClient, ChainUnavailable, NodeRefused
from settlement.chain.signer import Signer, SigningRefused, UnsignedTransaction
from settlement.models import Attempt, AttemptState, Transaction, TransactionState
from settlement.txmanager import nonces
from settlement.txmanager.fees import fees_for, gas_limit_for
from settlement.txmanager.outcomes import LEFT_THE_NODE, SendOutcome, classify
from settlement.txmanager.raw_call import raw_call

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = timedelta(minutes=10)
RESEND_AFTER = timedelta(seconds=30)


def broadcast(client: ChainClient, *, signer: Signer, max_fee_per_gas: int) -> int:
    """Start queued transactions of the signer, one after another; returns how many were handed over."""
    sender = signer.address
    handed_over = 0
    resend_lost(client, sender=sender)
    refill_gap(client, sender=sender)
    while True:
        row = _in_progress(client, sender) or _start(client, sender)
        if row is None:
            return handed_over
        attempt = row.attempts.last() or _sign(client, row, signer=signer, max_fee_per_gas=max_fee_per_gas)
        if attempt is None or not _send(client, row, attempt):
            return handed_over
        handed_over += 1


def _in_progress(client: ChainClient, sender: str) -> Transaction | None:
    now = timezone.now()
    row = Transaction.objects.filter(
        chain_id=client.chain_id, sender=sender, state=TransactionState.IN_PROGRESS
    ).first()
    return None if row is None or (row.retry_at and row.retry_at > now) else row


def _start(client: ChainClient, sender: str) -> Transaction | None:
    """Give the oldest due transaction its nonce, unless its call would revert now."""
    now = timezone.now()
    if Transaction.objects.filter(chain_id=client.chain_id, sender=sender, state=TransactionState.IN_PROGRESS).exists():
        return None
    queued = Transaction.objects.queued().filter(chain_id=client.chain_id, sender=sender).order_by("id")
    for row in queued:
        if row.retry_at and row.retry_at > now:
            continue
        try:
            client.simulate(raw_call(row), sender=sender)
        except CallReverted as reverted:
            # Before a nonce is taken: nothing was signed and nothing was paid for.
            _set_state(row, TransactionState.QUEUED, TransactionState.FAILED, reason=str(reverted.revert))
            continue
        if nonces.start_next(row, mined_count=client.transaction_count(sender)):
            return Transaction.objects.get(pk=row.pk)
        return None
    return None


def _sign(client: ChainClient, row: Transaction, *, signer: Signer, max_fee_per_gas: int) -> Attempt | None:
    """Sign and store an attempt. ``None`` if it has to wait."""
    try:
        estimate = client.estimate_gas(raw_call(row), sender=row.sender)
    except CallReverted as reverted:
        # The nonce never left this table, so it is free again.
        Transaction.objects.filter(pk=row.pk, state=TransactionState.IN_PROGRESS).update(
            state=TransactionState.FAILED, nonce=None, reason=str(reverted.revert)[:500]
        )
        return None
    except NodeRefused as refused:
        poor = classify(refused.message) is SendOutcome.INSUFFICIENT_FUNDS
        put_off(row, reason=f"{row.sender} cannot pay for gas: {refused}" if poor else str(refused))
        return None
    fees = fees_for(base_fee=client.head().base_fee, priority_fee=client.priority_fee(), cap=max_fee_per_gas)
    gas_limit = gas_limit_for(estimate)
    assert row.nonce is not None  # noqa: S101 - a started transaction has a nonce (constraint of that name)
    try:
        signed = signer.sign(
            UnsignedTransaction(
                chain_id=row.chain_id,
                nonce=row.nonce,
                to=row.to,
                data=bytes(HexBytes(row.data)),
                value=row.value,
                gas_limit=gas_limit,
                max_fee_per_gas=fees.max_fee_per_gas,
                max_priority_fee_per_gas=fees.max_priority_fee_per_gas,
            )
        )
    except SigningRefused as refused:
        put_off(row, reason=f"not signed: {refused}")
        return None
    with transaction.atomic():
        return Attempt.objects.create(
            transaction=row,
            hash="0x" + signed.hash.hex(),
            raw="0x" + signed.raw.hex(),
            gas_limit=gas_limit,
            max_fee_per_gas=fees.max_fee_per_gas,
            max_priority_fee_per_gas=fees.max_priority_fee_per_gas,
        )


def _send(client: ChainClient, row: Transaction, attempt: Attempt) -> bool:
    """Hand the stored bytes to a node. ``True`` once they are the network's."""
    outcome, words = send_bytes(client, attempt)
    if outcome not in LEFT_THE_NODE:
        put_off(row, reason=f"{outcome}: {words}")
        return False
    now = timezone.now()
    with transaction.atomic():
        Attempt.objects.filter(pk=attempt.pk).update(state=AttemptState.SENT, sent_at=now, error=words[:500])
        _set_state(row, TransactionState.IN_PROGRESS, TransactionState.SENT)
    logger.info("sent %s, nonce %s", row.key, row.nonce, extra={"event": "transaction_sent", "tx_hash": attempt.hash})
    return True


def send_bytes(client: ChainClient, attempt: Attempt) -> tuple[SendOutcome, str]:
    """Send stored bytes; what the answer means, and the node's words."""
    try:
        client.send_raw(bytes(HexBytes(attempt.raw)))
    except NodeRefused as refused:
        return classify(refused.message), refused.message
    except ChainUnavailable as unavailable:
        return SendOutcome.UNAVAILABLE, str(unavailable)
    return SendOutcome.ACCEPTED, ""


def resend_lost(client: ChainClient, *, sender: str) -> None:
    """Send again what a node accepted long ago and nobody has mined: the same bytes, the same nonce."""
    now = timezone.now()
    waiting = Attempt.objects.filter(
        transaction__chain_id=client.chain_id,
        transaction__sender=sender,
        transaction__state=TransactionState.SENT,
        state=AttemptState.SENT,
        sent_at__lt=now - RESEND_AFTER,
    ).order_by("transaction__nonce")
    for attempt in waiting:
        outcome, words = send_bytes(client, attempt)
        Attempt.objects.filter(pk=attempt.pk).update(sent_at=now, error=f"{outcome}: {words}"[:500])


def refill_gap(client: ChainClient, *, sender: str) -> None:
    """Send final transactions again that the chain no longer has, if any other waits behind their nonces.

    A chain that lost its newest blocks (an embedded one that was killed, say) would else never mine anything
    of this sender again. The same bytes have the same effect; what is booked stays booked.
    """
    mine = Transaction.objects.filter(chain_id=client.chain_id, sender=sender)
    if not mine.unfinished().exists():
        return
    lost = Attempt.objects.filter(
        transaction__in=mine.filter(
            state__in=(TransactionState.FINAL, TransactionState.REVERTED),
            nonce__gte=client.transaction_count(sender),
        ),
        state=AttemptState.MINED,
    ).order_by("transaction__nonce")
    for attempt in lost:
        outcome, words = send_bytes(client, attempt)
        logger.error(
            "the chain no longer has %s, which was final: sent again (%s %s)",
            attempt.hash,
            outcome,
            words,
            extra={"event": "final_transaction_lost", "tx_hash": attempt.hash},
        )


def put_off(row: Transaction, *, reason: str) -> None:
    """Try again later, later each time. The nonce and the bytes stay."""
    pause = min(_LONGEST_PAUSE, timedelta(seconds=2 ** min(row.retries, 10)))
    Transaction.objects.filter(pk=row.pk).update(
        retries=row.retries + 1, retry_at=timezone.now() + pause, reason=reason[:500]
    )
    logger.warning("%s put off for %s: %s", row.key, pause, reason, extra={"event": "transaction_put_off"})


def _set_state(row: Transaction, from_state: TransactionState, to_state: TransactionState, *, reason: str = "") -> bool:
    return bool(
        Transaction.objects.filter(pk=row.pk, state=from_state).update(
            state=to_state, reason=reason[:500], retry_at=None
        )
    )
