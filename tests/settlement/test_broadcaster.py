"""The outbox and the broadcaster against a scripted node."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.utils import timezone

from settlement.chain.bindings import errors
from settlement.chain.client import ChainUnavailable
from settlement.chain.contracts import encode_values
from settlement.models import Attempt, AttemptState, Transaction, TransactionState
from settlement.txmanager import outbox
from tests.fakes.scripted_rpc import AWAY, NodeError, ScriptedRpc, receipt, transaction_hash
from tests.settlement.conftest import Clock, Wallet

pytestmark = pytest.mark.django_db


def _revert(error: Any) -> NodeError:
    data = error.SELECTOR + encode_values(error.SPEC.inputs, [getattr(error, name) for name in error.__slots__])
    return NodeError("execution reverted", 3, "0x" + data.hex())


def test_the_same_key_for_the_same_call_is_the_same_row(wallet: Wallet) -> None:
    assert wallet.enqueue("claim:1").pk == wallet.enqueue("claim:1").pk
    assert Transaction.objects.count() == 1


def test_the_same_key_for_another_call_is_refused(wallet: Wallet) -> None:
    wallet.enqueue("claim:1")
    with pytest.raises(outbox.KeyReused, match="claim:1"):
        wallet.enqueue("claim:1", call=wallet.call(job_id=2))
    assert Transaction.objects.count() == 1


def test_a_queued_transaction_is_signed_sent_and_handed_over_once(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = wallet.enqueue()
    assert (wallet.broadcast(), wallet.broadcast()) == (1, 0)
    row.refresh_from_db()
    attempt = row.attempts.get()
    assert (row.state, row.nonce, attempt.state) == (TransactionState.SENT, 0, AttemptState.SENT)
    assert peer.sent() == [attempt.raw]
    assert attempt.hash == transaction_hash(attempt.raw)
    assert attempt.gas_limit == 125_000
    assert attempt.max_fee_per_gas == 2 * 10**9 + 10**6


@pytest.mark.django_db(transaction=True)
def test_the_signed_attempt_is_committed_before_the_node_sees_it(wallet: Wallet, peer: ScriptedRpc) -> None:
    found: list[tuple[str, str]] = []

    def look(params: list[str]) -> str:
        try:
            attempt = Attempt.objects.select_related("transaction").get(raw=params[0])
            found.append((attempt.state, attempt.transaction.state))
        finally:
            connections.close_all()
        return transaction_hash(params[0])

    peer.on("eth_sendRawTransaction", look)
    wallet.enqueue()
    wallet.broadcast()
    assert found == [(AttemptState.SIGNED, TransactionState.IN_PROGRESS)]


def test_already_known_counts_as_sent(wallet: Wallet, peer: ScriptedRpc) -> None:
    peer.on("eth_sendRawTransaction", NodeError("already known"))
    row = wallet.enqueue()
    assert wallet.broadcast() == 1
    row.refresh_from_db()
    assert row.state == TransactionState.SENT


def test_nonce_too_low_leaves_the_verdict_to_the_receipts(wallet: Wallet, peer: ScriptedRpc) -> None:
    peer.on("eth_sendRawTransaction", NodeError("nonce too low: next nonce 1, tx nonce 0"))
    row = wallet.enqueue()
    wallet.broadcast()
    attempt = row.attempts.get()
    peer.on("eth_getTransactionReceipt", receipt(attempt.hash))
    wallet.watch()
    row.refresh_from_db()
    assert row.state == TransactionState.FINAL


@pytest.mark.parametrize(
    "refusal",
    [
        NodeError("something nobody has ever read"),
        NodeError("tx fee (2.00 ether) exceeds the configured cap (1.00 ether)"),
        NodeError("insufficient funds for gas * price + value"),
        NodeError("too many requests", 429),
        AWAY,
    ],
    ids=["unknown", "over the node's cap", "no funds", "rate limit", "away"],
)
def test_what_was_not_accepted_is_sent_again_with_the_same_bytes_and_nonce(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock, refusal: Any
) -> None:
    peer.on("eth_sendRawTransaction", refusal)
    row = wallet.enqueue()
    assert wallet.broadcast() == 0
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.IN_PROGRESS, 0)
    assert row.retry_at is not None
    assert wallet.broadcast() == 0
    assert len(peer.sent()) == 1  # not before its time
    peer.on("eth_sendRawTransaction", lambda params: transaction_hash(params[0]))
    clock.offset += timedelta(minutes=11)
    assert wallet.broadcast() == 1
    first, second = peer.sent()
    assert first == second
    row.refresh_from_db()
    assert (row.state, row.nonce, row.attempts.count()) == (TransactionState.SENT, 0, 1)


def test_each_refusal_waits_longer_than_the_one_before(wallet: Wallet, peer: ScriptedRpc, clock: Clock) -> None:
    peer.on("eth_sendRawTransaction", NodeError("unheard of"))
    row = wallet.enqueue()
    pauses = []
    for _ in range(12):
        wallet.broadcast()
        row.refresh_from_db()
        assert row.retry_at is not None
        pauses.append(row.retry_at - timezone.now())
        clock.offset += pauses[-1] + timedelta(seconds=1)
    assert all(later >= earlier - timedelta(seconds=1) for earlier, later in pairwise(pauses))
    assert timedelta(minutes=9) < pauses[-1] <= timedelta(minutes=10)


def test_a_node_that_is_away_while_estimating_fails_nothing(wallet: Wallet, peer: ScriptedRpc, clock: Clock) -> None:
    peer.on("eth_estimateGas", AWAY, hex(100_000))
    row = wallet.enqueue()
    with pytest.raises(ChainUnavailable):
        wallet.broadcast()
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.QUEUED, None)
    clock.offset += timedelta(minutes=1)
    assert wallet.broadcast() == 1


def test_a_revert_in_simulation_fails_the_transaction_without_a_nonce(wallet: Wallet, peer: ScriptedRpc) -> None:
    """Invariant 14."""
    peer.on("eth_estimateGas", _revert(errors.TooFewTokens(claimed=1, minimum=100)), hex(100_000))
    refused, next_one = wallet.enqueue("refused"), wallet.enqueue("next")
    assert wallet.broadcast() == 1
    refused.refresh_from_db()
    next_one.refresh_from_db()
    assert (refused.state, refused.nonce, refused.attempts.count()) == (TransactionState.FAILED, None, 0)
    assert (refused.revert, refused.reason) == ("TooFewTokens", "TooFewTokens(claimed=1, minimum=100)")
    assert (next_one.state, next_one.nonce, next_one.revert) == (TransactionState.SENT, 0, "")


def test_no_two_transactions_hold_one_nonce(wallet: Wallet) -> None:
    first, second = wallet.enqueue("first"), wallet.enqueue("second")
    wallet.broadcast()
    assert {Transaction.objects.get(pk=row.pk).nonce for row in (first, second)} == {0, 1}
    with pytest.raises(IntegrityError), transaction.atomic():
        Transaction.objects.filter(pk=second.pk).update(nonce=0)


def test_a_started_transaction_has_a_nonce(wallet: Wallet) -> None:
    row = wallet.enqueue()
    with pytest.raises(IntegrityError), transaction.atomic():
        Transaction.objects.filter(pk=row.pk).update(state=TransactionState.SENT)


def test_the_chain_is_right_when_the_key_was_used_elsewhere(wallet: Wallet, peer: ScriptedRpc) -> None:
    first = wallet.enqueue("first")
    wallet.broadcast()
    peer.on("eth_getTransactionCount", hex(5))
    second = wallet.enqueue("second")
    wallet.broadcast()
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.nonce, second.nonce) == (0, 5)


def test_the_table_is_right_while_the_chain_is_behind(wallet: Wallet) -> None:
    for number in range(3):
        wallet.enqueue(f"number {number}")
    assert wallet.broadcast() == 3
    assert sorted(Transaction.objects.values_list("nonce", flat=True)) == [0, 1, 2]


def test_what_a_node_forgot_is_sent_again_after_a_while(wallet: Wallet, peer: ScriptedRpc, clock: Clock) -> None:
    wallet.enqueue()
    wallet.broadcast()
    clock.offset += wallet.limits.resend_after - timedelta(seconds=2)
    wallet.broadcast()
    assert len(peer.sent()) == 1
    clock.offset += timedelta(seconds=3)
    wallet.broadcast()
    wallet.broadcast()
    first, second = peer.sent()
    assert first == second


def test_fees_above_the_cap_are_capped_not_signed_higher(wallet: Wallet, peer: ScriptedRpc) -> None:
    wallet.limit(max_fee_per_gas=10**9)
    row = wallet.enqueue()
    wallet.broadcast()
    assert row.attempts.get().max_fee_per_gas == 10**9
