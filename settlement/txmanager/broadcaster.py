"""The broadcaster: from queued transactions to signed bytes that a node has accepted.

Guarantees that nothing is sent before it is committed as signed, that a restart goes on with the
stored bytes in the order of nonces, that no error takes a new nonce, and that one process at a time does
all this for an account. Does not guarantee delivery: the confirmer watches for receipts, and here the
bytes are sent again, replaced at a higher price or cancelled while there are none.
"""

from __future__ import annotations

import logging

from settlement.chain.client import ChainClient
from settlement.chain.signer import Signer, SigningRefused
from settlement.models import Attempt, Transaction, TransactionState
from settlement.txmanager import commands, gaps, nonces, quotes, replacement, senders, sending, starting, vanished
from settlement.txmanager.fees import gas_limit_for
from settlement.txmanager.limits import Limits
from settlement.txmanager.raw_call import raw_call
from settlement.txmanager.turn import NOTHING_GAS_LIMIT, Turn

logger = logging.getLogger(__name__)


def broadcast(client: ChainClient, *, signer: Signer, limits: Limits) -> int:
    """Send what is due for the signer's account; returns how many transactions a node took over."""
    sender = signer.address
    if not Transaction.objects.unfinished().filter(chain_id=client.chain_id, sender=sender).exists():
        return 0
    lease = senders.acquire(chain_id=client.chain_id, address=sender)
    if lease is None:
        return 0
    try:
        return _take_turn(Turn(client=client, signer=signer, limits=limits, lease=lease))
    except senders.LeaseLost as lost:
        logger.warning("%s", lost, extra={"event": "lease_lost"})
        return 0
    finally:
        senders.release(lease)


def _take_turn(turn: Turn) -> int:
    reported = turn.client.reported_chain_id()
    if reported != turn.lease.chain_id:
        senders.pause(turn.lease, reason=f"the node is of chain {reported}", event="wrong_chain")
        return 0
    mined_count = turn.client.transaction_count(turn.sender)
    commands.cancel_queued(turn.rows)
    vanished.take_back_lost(turn.client, sender=turn.sender, mined_count=mined_count)
    rows = turn.unmined()
    gaps.fill(turn, rows, mined_count=mined_count)
    replacement.replace_due(turn, rows, mined_count=mined_count)
    rows = turn.unmined()
    sending.resend_lost(turn, rows)
    if senders.pause_reason(chain_id=turn.lease.chain_id, address=turn.sender):
        return 0
    handed_over = 0
    try:
        handed_over, clear = _resume(turn, rows)
        while clear:
            started = starting.start_batch(turn, mined_count=mined_count)
            if started.attempts:
                left, clear = sending.hand_over(turn, started.attempts, head=started.head)
                handed_over += left
            elif not started.more:
                break
    except senders.SenderPaused:
        # Said in the log and on the sender's row by who paused it.
        return handed_over
    senders.resume(chain_id=turn.lease.chain_id, address=turn.sender)
    return handed_over


def _resume(turn: Turn, rows: list[Transaction]) -> tuple[int, bool]:
    """Hand over what was started and not accepted, in the order of nonces, up to the first that has to wait.

    Returns how many left, and whether nothing is held up.
    """
    started = [row for row in rows if row.state == TransactionState.IN_PROGRESS]
    if not started:
        return 0, True
    head = turn.client.head().number
    attempts: list[Attempt] = []
    for row in started:
        attempt = None if sending.has_to_wait(row) else _newest_attempt(turn, row)
        if attempt is None:
            break
        attempts.append(attempt)
    handed_over = 0
    for start in range(0, len(attempts), sending.BATCH):
        left, clear = sending.hand_over(turn, attempts[start : start + sending.BATCH], head=head)
        handed_over += left
        if not clear:
            return handed_over, False
    return handed_over, len(attempts) == len(started)


def _newest_attempt(turn: Turn, row: Transaction) -> Attempt | None:
    """The stored attempt, or a first one for a nonce that is to be filled. ``None`` if it has to wait."""
    stored = list(row.attempts.all())
    if stored:
        return stored[-1]
    market = turn.prices()
    gas_limit = NOTHING_GAS_LIMIT if row.data == "0x" else _estimated(turn, row)
    try:
        fee = quotes.l1_fee(turn.client, raw_call(row).data, limits=turn.limits)
    except quotes.OracleFailed as failed:
        sending.put_off(row, reason=str(failed))
        return None
    terms = replacement.first_terms(row, gas_limit=gas_limit, l1_fee=fee, market=market, turn=turn)
    if isinstance(terms, str):
        sending.put_off(row, reason=terms)
        return None
    assert row.nonce is not None  # noqa: S101 - a started transaction has a nonce (constraint of that name)
    try:
        attempt = turn.sign(row, nonce=row.nonce, terms=terms)
    except SigningRefused as refused:
        sending.put_off(row, reason=f"not signed: {refused}")
        return None
    return attempt if nonces.store_for(row, attempt, lease=turn.lease) else None


def _estimated(turn: Turn, row: Transaction) -> int:
    """For rows that an earlier version gave a nonce and did not sign."""
    return gas_limit_for(turn.client.estimate_gas(raw_call(row), sender=turn.sender))
