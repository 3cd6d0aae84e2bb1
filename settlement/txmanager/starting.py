"""Starting: queued transactions get simulated, priced, signed and stored, a batch at a time.

Guarantees that a call which would revert fails before it takes a nonce (invariant 14), that a node's
silence fails nothing, that nonces are given in the order of priority and age, and that the operator's
limits on cost, on a day's spending and on what is in flight are kept. Sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from hexbytes import HexBytes

from settlement.chain.client import CallReverted, NodeRefused
from settlement.chain.signer import SigningRefused
from settlement.models import Attempt, Transaction, TransactionEvent, TransactionState
from settlement.txmanager import events, nonces, quotes, senders
from settlement.txmanager.fees import MAX_GAS_LIMIT, Prices, gas_limit_for
from settlement.txmanager.outcomes import SendOutcome, classify
from settlement.txmanager.raw_call import raw_call
from settlement.txmanager.replacement import first_terms
from settlement.txmanager.sending import BATCH, put_off
from settlement.txmanager.turn import Terms, Turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Attempts to send, in nonce order. ``more`` says whether further rows may be due."""

    attempts: Sequence[Attempt]
    head: int
    more: bool


def start_batch(turn: Turn, *, mined_count: int) -> Started:
    """Start what is due, at most a batch and what may be in flight. Raises ``SenderPaused`` or ``LeaseLost``."""
    room = turn.limits.max_in_flight - turn.rows.unmined().count()
    rows = _due(turn, at_most=min(room, BATCH)) if room > 0 else []
    if not rows:
        return Started(attempts=(), head=0, more=False)
    estimates = turn.client.estimates([raw_call(row) for row in rows], sender=turn.sender)
    market = turn.prices()
    runnable = _sort_out(turn, rows, estimates)
    if not runnable:
        return Started(attempts=(), head=market.head, more=True)
    planned = _within_limits(turn, runnable, market=market)
    attempts = _sign(turn, planned, mined_count=mined_count)
    if attempts:
        try:
            nonces.start(attempts, lease=turn.lease)
        except nonces.RowsChanged:
            # The rows are read again; one of them is no longer due.
            return Started(attempts=(), head=market.head, more=True)
    return Started(attempts=attempts, head=market.head, more=True)


def _due(turn: Turn, *, at_most: int) -> list[Transaction]:
    now = timezone.now()
    queued = turn.rows.filter(state=TransactionState.QUEUED, cancel_requested_at__isnull=True)
    due = queued.filter(Q(retry_at__isnull=True) | Q(retry_at__lte=now))
    return list(due.order_by("-priority", "id")[:at_most])


def _sort_out(
    turn: Turn, rows: Sequence[Transaction], estimates: Sequence[int | CallReverted | NodeRefused]
) -> list[tuple[Transaction, int]]:
    """What can run, with its gas limit; what cannot has failed or waits. Raises ``SenderPaused``."""
    runnable = []
    poor = ""
    for row, estimate in zip(rows, estimates, strict=True):
        if isinstance(estimate, CallReverted):
            _fail(row, estimate)
        elif isinstance(estimate, NodeRefused):
            if classify(estimate.message) == SendOutcome.INSUFFICIENT_FUNDS:
                poor = f"cannot pay for gas: {estimate.message}"
            put_off(row, reason=poor or str(estimate))
        elif estimate > MAX_GAS_LIMIT:
            put_off(row, reason=f"needs {estimate} gas; a transaction has at most {MAX_GAS_LIMIT}")
        else:
            runnable.append((row, gas_limit_for(estimate)))
    if poor:
        raise senders.pause(turn.lease, reason=poor, event="insufficient_funds")
    return runnable


def _fail(row: Transaction, reverted: CallReverted) -> None:
    # Nothing was signed and nothing was paid for.
    failed = Transaction.objects.filter(pk=row.pk, state=TransactionState.QUEUED).update(
        state=TransactionState.FAILED,
        reason=str(reverted.revert)[:500],
        revert=reverted.revert.name[:200],
        retry_at=None,
    )
    if failed:
        logger.warning("%s would revert: %s", row.key, reverted.revert, extra={"event": "simulation_reverted"})


def _within_limits(
    turn: Turn, runnable: Sequence[tuple[Transaction, int]], *, market: Prices
) -> list[tuple[Transaction, Terms]]:
    """What may be spent on now. Raises ``SenderPaused`` if the day's budget allows nothing, or nobody can tell."""
    longest = max((bytes(HexBytes(row.data)) for row, _ in runnable), key=len)
    try:
        l1_fee = quotes.l1_fee(turn.client, longest, limits=turn.limits)
    except quotes.OracleFailed as failed:
        for row, _ in runnable:
            put_off(row, reason=str(failed))
        raise senders.pause(turn.lease, reason=str(failed), event="fee_oracle_failed") from failed
    budget = turn.budget_left()
    planned: list[tuple[Transaction, Terms]] = []
    for row, gas_limit in runnable:
        terms = first_terms(row, gas_limit=gas_limit, l1_fee=l1_fee, market=market, turn=turn)
        if isinstance(terms, str):
            put_off(row, reason=terms)
            continue
        if terms.worst_cost > budget:
            # What fits goes first; the next batch then has no room at all.
            if not planned:
                raise _budget_spent(turn, row, needed=terms.worst_cost, left=budget)
            break
        budget -= terms.worst_cost
        planned.append((row, terms))
    return planned


def _budget_spent(turn: Turn, row: Transaction, *, needed: int, left: int) -> senders.SenderPaused:
    reason = (
        f"the daily gas budget of {turn.limits.daily_budget} wei (FABSTIR_DAILY_GAS_BUDGET_WEI) has {max(left, 0)} wei "
        f"left, and {row.kind} may cost {needed}"
    )
    put_off(row, reason=reason)
    return senders.pause(turn.lease, reason=reason, event="gas_budget_spent")


def _sign(turn: Turn, planned: Sequence[tuple[Transaction, Terms]], *, mined_count: int) -> list[Attempt]:
    """Attempts with consecutive nonces. What the signer refuses takes none and waits."""
    given = nonces.highest(chain_id=turn.lease.chain_id, sender=turn.sender)
    nonce = nonces.next_nonce(given, mined_count=mined_count)
    attempts: list[Attempt] = []
    for row, terms in planned:
        try:
            attempts.append(turn.sign(row, nonce=nonce + len(attempts), terms=terms))
        except SigningRefused as refused:
            put_off(row, reason=f"not signed: {refused}")
    if attempts and given is not None and mined_count > given + 1:
        _tell_of_foreign_use(attempts[0].transaction, skipped=range(given + 1, mined_count))
    return attempts


def _tell_of_foreign_use(row: Transaction, *, skipped: range) -> None:
    reason = f"nonces {skipped.start} to {skipped.stop - 1} were used by another wallet with this key"
    with transaction.atomic():
        events.record(row, TransactionEvent.What.FAST_FORWARDED, actor=events.BROADCASTER, reason=reason)
    logger.error("%s: %s", row.sender, reason, extra={"event": "nonce_fast_forward"})
