"""Bumps and cancels: another attempt with the same nonce, against a scripted node."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from settlement.models import (
    Attempt,
    AttemptKind,
    AttemptState,
    Transaction,
    TransactionEvent,
    TransactionKind,
    TransactionState,
)
from settlement.txmanager import commands
from tests.fakes.scripted_rpc import AWAY, NodeError, ScriptedRpc, block, receipt, transaction_hash
from tests.settlement.conftest import Clock, Wallet

pytestmark = pytest.mark.django_db
GWEI = 10**9


@pytest.fixture
def sent(wallet: Wallet) -> Transaction:
    row = wallet.enqueue()
    assert wallet.broadcast() == 1
    row.refresh_from_db()
    return row


def _accept(params: list[Any]) -> str:
    return transaction_hash(params[0])


def _market(peer: ScriptedRpc, *, base_fee: int) -> None:
    peer.on("eth_getBlockByNumber", block(base_fee=base_fee))


def _wait(wallet: Wallet, clock: Clock) -> None:
    clock.offset += wallet.limits.bump_after + timedelta(seconds=1)


def _signed(attempt: Attempt) -> dict[str, Any]:
    return dict(TypedTransaction.from_bytes(HexBytes(attempt.raw)).transaction.dictionary)


def _events(row: Transaction) -> list[str]:
    return [event.what for event in row.events.all()]


def test_a_bump_keeps_nonce_and_call_and_raises_both_fees(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    """Invariants 5 and 6."""
    _market(peer, base_fee=3 * GWEI)
    _wait(wallet, clock)
    wallet.broadcast()
    first, second = sent.attempts.all()
    before, after = _signed(first), _signed(second)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"maxFeePerGas", "maxPriorityFeePerGas", "v", "r", "s"} or changed == {
        "maxFeePerGas",
        "maxPriorityFeePerGas",
        "r",
        "s",
    }
    assert second.max_fee_per_gas == 2 * 3 * GWEI + 10**6
    assert second.max_priority_fee_per_gas == 11 * 10**5
    assert peer.sent()[-1] == second.raw
    assert _events(sent) == [TransactionEvent.What.BUMPED]


@pytest.mark.parametrize(
    ("base_fee", "passed"),
    [(GWEI, timedelta(hours=1)), (3 * GWEI, timedelta(seconds=80))],
    ids=["the price is right", "too early"],
)
def test_nothing_is_bumped_without_need(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock, base_fee: int, passed: timedelta
) -> None:
    _market(peer, base_fee=base_fee)
    clock.offset += passed
    wallet.broadcast()
    assert sent.attempts.count() == 1
    assert len(peer.sent()) == 2  # the same bytes again
    assert len(set(peer.sent())) == 1


def test_only_the_lowest_unmined_nonce_is_bumped(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    second = wallet.enqueue("second")
    wallet.broadcast()
    _market(peer, base_fee=3 * GWEI)
    _wait(wallet, clock)
    wallet.broadcast()
    assert (sent.attempts.count(), second.attempts.count()) == (2, 1)


def test_at_the_fee_cap_the_same_bytes_are_sent_again(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    """op-txmgr RetriesUnbumpableTx."""
    wallet.limit(max_fee_per_gas=sent.attempts.get().max_fee_per_gas)
    _market(peer, base_fee=50 * GWEI)
    for _ in range(3):
        _wait(wallet, clock)
        wallet.broadcast()
    sent.refresh_from_db()
    assert len(peer.sent()) == 4
    assert len(set(peer.sent())) == 1
    assert "FABSTIR_MAX_FEE_PER_GAS_WEI" in sent.reason


def test_a_bump_never_costs_more_than_what_it_settles_is_worth(wallet: Wallet, peer: ScriptedRpc, clock: Clock) -> None:
    row = wallet.enqueue(cost_limit=125_000 * 3 * GWEI)
    wallet.broadcast()
    _market(peer, base_fee=10 * GWEI)
    _wait(wallet, clock)
    wallet.broadcast()
    row.refresh_from_db()
    assert row.attempts.count() == 1
    assert "above its limit of 375000000000000" in row.reason


def test_an_old_attempt_that_is_mined_after_bumps_wins(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    """Invariant 7; op-txmgr ConfirmsMinGasPriceAfterBumping."""
    for base_fee in (3 * GWEI, 9 * GWEI):
        _market(peer, base_fee=base_fee)
        _wait(wallet, clock)
        wallet.broadcast()
    first, *later = sent.attempts.all()
    peer.on("eth_getTransactionReceipt", lambda params: receipt(first.hash) if params[0] == first.hash else None)
    wallet.watch()
    sent.refresh_from_db()
    assert sent.state == TransactionState.FINAL
    states = [attempt.state for attempt in sent.attempts.all()]
    assert states == [AttemptState.MINED, AttemptState.REPLACED, AttemptState.REPLACED]
    assert len(later) == 2


def test_a_price_that_the_node_calls_too_low_is_raised_until_it_is_taken(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock
) -> None:
    """op-txmgr OnlyOnePublicationSucceeds."""
    low = NodeError("transaction underpriced")
    peer.on("eth_sendRawTransaction", low, low, low, _accept)
    row = wallet.enqueue()
    for _ in range(4):
        wallet.broadcast()
        clock.offset += timedelta(minutes=1)
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.SENT, 0)
    fees = [attempt.max_fee_per_gas for attempt in row.attempts.all()]
    assert len(fees) == 4
    assert all(later * 10 >= earlier * 11 for earlier, later in pairwise(fees))
    assert {attempt.nonce for attempt in row.attempts.all()} == {0}


def test_a_bump_that_is_underpriced_is_raised_again(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    """chainlink: re-bumps when the replacement is underpriced."""
    _market(peer, base_fee=3 * GWEI)
    peer.on("eth_sendRawTransaction", NodeError("replacement transaction underpriced"))
    _wait(wallet, clock)
    wallet.broadcast()
    assert sent.attempts.count() == 2
    peer.on("eth_sendRawTransaction", _accept)
    clock.offset += timedelta(seconds=5)
    wallet.broadcast()
    assert [attempt.state for attempt in sent.attempts.all()] == [
        AttemptState.SENT,
        AttemptState.SIGNED,
        AttemptState.SENT,
    ]


def test_a_bump_that_was_stored_and_not_sent_is_sent_by_the_next_turn(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    """chainlink: saves the attempt on a temporary error, then completes it."""
    _market(peer, base_fee=3 * GWEI)
    peer.on("eth_sendRawTransaction", AWAY)
    _wait(wallet, clock)
    wallet.broadcast()
    peer.on("eth_sendRawTransaction", _accept)
    clock.offset += wallet.limits.resend_after
    wallet.broadcast()
    second = sent.attempts.all()[1]
    assert (peer.sent()[-1], second.state, second.outcome) == (second.raw, AttemptState.SENT, "accepted")


def test_what_is_queued_is_cancelled_at_once(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = wallet.enqueue()
    assert commands.cancel(row.pk, actor="ada", reason="by mistake")
    assert not commands.cancel(row.pk, actor="ada", reason="again")
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.CANCELLED, None)
    assert wallet.broadcast() == 0
    assert peer.sent() == []
    event = row.events.get()
    assert (event.what, event.actor, event.reason) == ("cancel_requested", "ada", "by mistake")


def test_a_cancel_is_an_empty_transfer_to_oneself_with_the_same_nonce(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    """Invariant 13."""
    assert commands.cancel(sent.pk, actor="ada", reason="too dear")
    wallet.broadcast()
    call, cancel = sent.attempts.all()
    signed = _signed(cancel)
    assert (cancel.kind, signed["nonce"], signed["value"], signed["data"]) == (AttemptKind.CANCEL, 0, 0, b"")
    assert "0x" + bytes(signed["to"]).hex() == wallet.signer.address
    assert Account.recover_transaction(cancel.raw).lower() == wallet.signer.address
    assert cancel.max_fee_per_gas * 10 >= call.max_fee_per_gas * 11
    peer.on("eth_getTransactionReceipt", lambda params: receipt(cancel.hash) if params[0] == cancel.hash else None)
    wallet.watch()
    sent.refresh_from_db()
    assert sent.state == TransactionState.CANCELLED
    call.refresh_from_db()
    assert call.state == AttemptState.REPLACED
    wallet.broadcast()
    assert len(peer.sent()) == 2


def test_a_call_that_is_mined_before_its_cancel_has_happened(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    commands.cancel(sent.pk, actor="ada", reason="too late")
    wallet.broadcast()
    call = sent.attempts.all()[0]
    peer.on("eth_getTransactionReceipt", lambda params: receipt(call.hash) if params[0] == call.hash else None)
    wallet.watch()
    sent.refresh_from_db()
    assert sent.state == TransactionState.FINAL


def test_what_is_mined_can_neither_be_cancelled_nor_bumped(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    wallet.limit(confirmations=2)
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash))
    wallet.watch()
    assert not commands.cancel(sent.pk, actor="ada", reason="")
    assert not commands.bump(sent.pk, actor="ada")
    assert _events(sent) == []


def test_a_bump_that_is_asked_for_waits_for_no_market(wallet: Wallet, sent: Transaction) -> None:
    assert commands.bump(sent.pk, actor="ada")
    wallet.broadcast()
    wallet.broadcast()
    assert sent.attempts.count() == 2
    assert _events(sent) == [TransactionEvent.What.BUMP_REQUESTED, TransactionEvent.What.BUMPED]


def test_what_no_node_will_ever_take_is_replaced_by_nothing_under_its_nonce(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock
) -> None:
    """The bytes were handed over, so the nonce is not simply free again (invariant 3)."""
    peer.on("eth_sendRawTransaction", NodeError("transaction type not supported"), _accept)
    row = wallet.enqueue()
    wallet.broadcast()
    clock.offset += timedelta(minutes=1)
    wallet.broadcast()
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.SENT, 0)
    assert [attempt.kind for attempt in row.attempts.all()] == [AttemptKind.CALL, AttemptKind.CANCEL]
    assert _events(row)[0] == TransactionEvent.What.REFUSED


def test_a_nonce_that_the_table_never_used_is_filled(wallet: Wallet, sent: Transaction, peer: ScriptedRpc) -> None:
    """Invariant 13; TXM v2 "fills nonce gap". A table restored from a backup has such a gap."""
    Transaction.objects.filter(pk=sent.pk).update(nonce=2)
    Attempt.objects.filter(transaction=sent).update(nonce=2)
    assert wallet.broadcast() == 2
    fills = Transaction.objects.filter(kind=TransactionKind.FILL).order_by("nonce")
    assert [(row.nonce, row.state, row.key) for row in fills] == [
        (nonce, TransactionState.SENT, f"fill:{wallet.chain_id}:{wallet.signer.address}:{nonce}") for nonce in (0, 1)
    ]
    signed = _signed(fills[0].attempts.get())
    assert (signed["value"], signed["data"], "0x" + bytes(signed["to"]).hex()) == (0, b"", wallet.signer.address)
    assert wallet.broadcast() == 0
