"""Receipts until they are final, against a scripted node."""

from __future__ import annotations

import pytest

from settlement.chain.bindings import errors
from settlement.chain.contracts import encode_values
from settlement.models import Attempt, AttemptState, Receipt, Transaction, TransactionEvent, TransactionState
from tests.fakes.scripted_rpc import AWAY, NodeError, ScriptedRpc, block, receipt
from tests.settlement.conftest import Clock, Wallet

pytestmark = pytest.mark.django_db


@pytest.fixture
def sent(wallet: Wallet) -> Transaction:
    row = wallet.enqueue()
    wallet.broadcast()
    row.refresh_from_db()
    assert row.state == TransactionState.SENT
    return row


def _state(row: Transaction) -> str:
    return str(Transaction.objects.get(pk=row.pk).state)


def test_no_receipt_leaves_the_transaction_sent(wallet: Wallet, sent: Transaction) -> None:
    assert wallet.watch() == 0
    assert _state(sent) == TransactionState.SENT


def test_a_receipt_that_comes_later_is_recorded_once(wallet: Wallet, sent: Transaction, peer: ScriptedRpc) -> None:
    tx_hash = sent.attempts.get().hash
    peer.on("eth_getTransactionReceipt", None, receipt(tx_hash))
    assert wallet.watch() == 0
    assert wallet.watch() == 2  # mined, and final at a depth of one
    assert wallet.watch() == 0
    row = Receipt.objects.get()
    assert (row.transaction_id, row.block_number, row.succeeded, row.fee) == (sent.pk, 1, True, 21000 * 10**9)
    assert _state(sent) == TransactionState.FINAL
    assert sent.attempts.get().state == AttemptState.MINED


def test_a_preconfirmation_without_a_canonical_block_is_no_receipt(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash, branch=1))
    assert wallet.watch() == 0
    assert not Receipt.objects.exists()


def test_a_transaction_is_final_only_at_the_configured_depth(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    wallet.limit(confirmations=3)
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash))
    for head, expected in ((1, TransactionState.MINED), (2, TransactionState.MINED), (3, TransactionState.FINAL)):
        peer.on("eth_getBlockByNumber", lambda params, head=head: block(head if params[0] == "latest" else 1))
        wallet.watch()
        assert _state(sent) == expected


def test_a_receipt_with_status_0_is_reverted_with_the_decoded_reason(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    error = errors.TooFewTokens(claimed=7, minimum=100)
    data = error.SELECTOR + encode_values(error.SPEC.inputs, [error.claimed, error.minimum])
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash, status=0))
    peer.on("eth_call", NodeError("execution reverted", 3, "0x" + data.hex()))
    wallet.watch()
    row = Receipt.objects.get()
    assert _state(sent) == TransactionState.REVERTED
    assert not row.succeeded
    assert row.revert_reason == "TooFewTokens(claimed=7, minimum=100)"


def test_a_revert_without_data_still_has_a_reason(wallet: Wallet, sent: Transaction, peer: ScriptedRpc) -> None:
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash, status=0))
    wallet.watch()
    assert "reverted" in Receipt.objects.get().revert_reason


def test_a_block_that_is_gone_takes_the_transaction_back_to_sent(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    wallet.limit(confirmations=2)
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash))
    wallet.watch()
    assert _state(sent) == TransactionState.MINED
    peer.on("eth_getTransactionReceipt", None)
    peer.on("eth_getBlockByNumber", block(branch=1))
    wallet.watch()
    assert _state(sent) == TransactionState.SENT
    assert not Receipt.objects.exists()
    assert sent.attempts.get().state == AttemptState.SENT
    wallet.broadcast()
    assert len(set(peer.sent())) == 1
    assert len(peer.sent()) == 2


def test_a_node_that_fails_between_two_looks_changes_nothing(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    peer.on("eth_getTransactionReceipt", AWAY, receipt(sent.attempts.get().hash))
    with pytest.raises(Exception, match="none of 1"):
        wallet.watch()
    assert _state(sent) == TransactionState.SENT
    wallet.watch()
    assert _state(sent) == TransactionState.FINAL


def test_any_attempt_of_a_transaction_may_win(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc, clock: Clock
) -> None:
    older = sent.attempts.get()
    newer = Attempt.objects.create(
        transaction=sent,
        nonce=0,
        hash="0x" + "5" * 64,
        raw="0x02",
        gas_limit=1,
        max_fee_per_gas=1,
        max_priority_fee_per_gas=1,
        state=AttemptState.SENT,
        sent_at=clock.now(),
    )
    peer.on("eth_getTransactionReceipt", lambda params: receipt(older.hash) if params[0] == older.hash else None)
    wallet.watch()
    assert Receipt.objects.get().attempt == older
    newer.refresh_from_db()
    assert newer.state == AttemptState.REPLACED


def test_what_was_final_and_is_lost_is_sent_again_before_it_blocks_others(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    """A chain that was killed came back without its newest blocks."""
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash))
    wallet.watch()
    assert _state(sent) == TransactionState.FINAL
    wallet.watch()
    assert _state(sent) == TransactionState.FINAL  # a count that is too low proves nothing while the block is there
    peer.on("eth_getTransactionReceipt", None)
    peer.on("eth_getBlockByNumber", block(branch=1))
    wallet.enqueue("second")
    wallet.broadcast()
    first, again, second = peer.sent()
    assert first == again != second
    assert _state(sent) == TransactionState.SENT
    assert [event.what for event in sent.events.all()] == [TransactionEvent.What.LOST]
    peer.on("eth_getTransactionReceipt", lambda params: receipt(params[0], branch=1))
    wallet.watch()
    assert _state(sent) == TransactionState.FINAL
    assert Receipt.objects.get(transaction=sent).block_hash == block(branch=1)["hash"]


def test_an_idle_host_notices_that_the_chain_lost_what_was_final(
    wallet: Wallet, sent: Transaction, peer: ScriptedRpc
) -> None:
    peer.on("eth_getTransactionReceipt", receipt(sent.attempts.get().hash))
    wallet.watch()
    peer.on("eth_getTransactionReceipt", None)
    peer.on("eth_getBlockByNumber", None)
    assert wallet.watch() == 1
    assert (_state(sent), Receipt.objects.count()) == (TransactionState.SENT, 0)


def test_transactions_of_other_keys_and_chains_are_left_alone(wallet: Wallet, sent: Transaction) -> None:
    Transaction.objects.filter(pk=sent.pk).update(chain_id=1)
    calls = len(wallet.client.endpoints())
    assert wallet.watch() == 0
    assert wallet.broadcast() == 0
    assert calls == 1
