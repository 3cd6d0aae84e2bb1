"""Replacement: another attempt with a nonce that is taken, for a higher price or to cancel.

Guarantees that a bump changes fees alone (invariant 5), that it raises both by a tenth over every
attempt before (invariant 6), that only the lowest unmined nonce is bumped unasked, and that a cancel
is an attempt like any other: whichever of them is mined decides (invariants 7 and 13). At a limit of the
operator nothing is signed; the same bytes go on being sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.utils import timezone

from settlement.chain.signer import SigningRefused
from settlement.models import (
    Attempt,
    AttemptKind,
    Transaction,
    TransactionEvent,
    TransactionKind,
    TransactionState,
)
from settlement.txmanager import nonces, quotes
from settlement.txmanager.fees import Fees, Prices, affordable, bumped, is_outbid, market_fees
from settlement.txmanager.outcomes import PRICED_TOO_LOW
from settlement.txmanager.sending import has_to_wait, put_off
from settlement.txmanager.turn import NOTHING_GAS_LIMIT, Terms, Turn, cost_limit_of

logger = logging.getLogger(__name__)


def replace_due(turn: Turn, rows: Sequence[Transaction], *, mined_count: int) -> int:
    """Store a further attempt for every row that needs one; returns how many. They are sent by who sends."""
    lowest = next((row.nonce for row in rows if row.nonce is not None and row.nonce >= mined_count), None)
    stored = 0
    market: Prices | None = None
    for row in rows:
        attempts = list(row.attempts.all())
        if not attempts:
            continue
        asked = _is_asked_for(row, attempts[-1])
        due = row.nonce == lowest and row.state == TransactionState.SENT and _is_old(turn, attempts[-1])
        if not asked and not due:
            continue
        market = market or turn.prices()
        if asked or is_outbid(_highest(attempts), market=market):
            stored += _replace(turn, row, attempts, market=market)
    return stored


def _is_asked_for(row: Transaction, newest: Attempt) -> bool:
    if row.bump_requested_at is not None:
        return True
    if row.cancel_requested_at is not None and newest.kind == AttemptKind.CALL and row.kind != TransactionKind.FILL:
        return True
    return newest.outcome in PRICED_TOO_LOW and not has_to_wait(row)


def _is_old(turn: Turn, newest: Attempt) -> bool:
    return newest.sends > 0 and newest.created_at <= timezone.now() - turn.limits.bump_after


def _highest(attempts: Sequence[Attempt]) -> Fees:
    return Fees(
        max_fee_per_gas=max(attempt.max_fee_per_gas for attempt in attempts),
        max_priority_fee_per_gas=max(attempt.max_priority_fee_per_gas for attempt in attempts),
    )


def _replace(turn: Turn, row: Transaction, attempts: Sequence[Attempt], *, market: Prices) -> bool:
    cancels = row.cancel_requested_at is not None and row.kind != TransactionKind.FILL
    terms = _terms(turn, row, attempts, market=market, cancels=cancels)
    if isinstance(terms, str):
        _give_in(row, reason=terms)
        return False
    kind = AttemptKind.CANCEL if cancels else AttemptKind.CALL
    nonce = attempts[-1].nonce
    try:
        attempt = turn.sign(row, nonce=nonce, terms=terms, kind=kind)
    except SigningRefused as refused:
        _give_in(row, reason=f"not replaced: {refused}")
        return False
    fees = f"{terms.fees.max_fee_per_gas} / {terms.fees.max_priority_fee_per_gas} wei per gas"
    stored = nonces.store_for(
        row,
        attempt,
        lease=turn.lease,
        event=TransactionEvent.What.CANCELLED if cancels else TransactionEvent.What.BUMPED,
        reason=f"nonce {nonce} offers {fees}",
    )
    if stored:
        logger.warning(
            "%s, nonce %s: a %s attempt at %s",
            row.key,
            nonce,
            kind,
            fees,
            extra={"event": "transaction_replaced", "tx_hash": attempt.hash},
        )
    return stored


def _terms(turn: Turn, row: Transaction, attempts: Sequence[Attempt], *, market: Prices, cancels: bool) -> Terms | str:
    """What the next attempt offers, or why there can be none."""
    fees = bumped(_highest(attempts), market=market_fees(market, limits=turn.limits), limits=turn.limits)
    if fees is None:
        return "at the fee cap (FABSTIR_MAX_FEE_PER_GAS_WEI): the same bytes are sent again"
    # Never a lower gas limit than was signed before; a cancel needs what a transfer needs.
    gas_limit = NOTHING_GAS_LIMIT if cancels else max(attempt.gas_limit for attempt in attempts)
    try:
        l1_fee = quotes.l1_fee(turn.client, b"", limits=turn.limits) if cancels else attempts[-1].l1_fee
    except quotes.OracleFailed as failed:
        return str(failed)
    wanted = Terms(fees=fees, gas_limit=gas_limit, l1_fee=l1_fee)
    limit = cost_limit_of(row, limits=turn.limits)
    if wanted.worst_cost > limit:
        return f"a higher fee could cost {wanted.worst_cost} wei, above its limit of {limit}"
    more = wanted.worst_cost - max(attempt.worst_cost for attempt in attempts)
    if more > 0 and more > turn.budget_left():
        return "the daily gas budget (FABSTIR_DAILY_GAS_BUDGET_WEI) allows no higher fee"
    return wanted


def _give_in(row: Transaction, *, reason: str) -> None:
    """No further attempt for now: the request is answered by the reason, and sending goes on as before."""
    Transaction.objects.filter(pk=row.pk).update(bump_requested_at=None, reason=reason[:500])
    if row.state == TransactionState.SENT:
        put_off(row, reason=reason)
    # What no node has taken yet is put off by the next answer to the same bytes. Here it would be put off
    # before each of its turns, and never be sent again.
    logger.error("%s: %s", row.key, reason, extra={"event": "transaction_not_replaced"})


def first_terms(row: Transaction, *, gas_limit: int, l1_fee: int, market: Prices, turn: Turn) -> Terms | str:
    """What a first attempt offers, or why it waits."""
    limit = cost_limit_of(row, limits=turn.limits)
    wanted = market_fees(market, limits=turn.limits)
    fees = affordable(wanted, gas_limit=gas_limit, l1_fee=l1_fee, market=market, budget=limit)
    if fees is None:
        cost = gas_limit * min(market.fee_per_gas, wanted.max_fee_per_gas) + l1_fee
        return f"would cost {cost} wei now, above its limit of {limit}: waits for a lower price"
    return Terms(fees=fees, gas_limit=gas_limit, l1_fee=l1_fee)
