"""A nonce that another wallet used, on a scripted node and on an anvil; and lost and reorganised transactions there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from settlement.chain import local
from settlement.models import AttemptState, Receipt, Transaction, TransactionEvent, TransactionKind, TransactionState
from settlement.txmanager.displacement import OBSERVATIONS
from tests.fakes.scripted_rpc import AWAY, NodeError, ScriptedRpc, receipt
from tests.settlement.conftest import Clock, Wallet, wallet_on

pytestmark = pytest.mark.django_db

# No contract answers there, so any call succeeds and costs little.
_NOBODY = "0x" + "Aa" * 20


def _sent(wallet: Wallet, key: str = "first") -> Transaction:
    row = wallet.enqueue(key)
    assert wallet.broadcast() == 1
    row.refresh_from_db()
    return row


def test_a_stolen_nonce_is_believed_at_the_third_look_and_the_work_queued_again(
    wallet: Wallet, peer: ScriptedRpc, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant 8 of the reference, 9 of the manager."""
    row = _sent(wallet)
    peer.on("eth_getTransactionCount", hex(1))
    for look in range(1, OBSERVATIONS):
        assert wallet.watch() == 0
        row.refresh_from_db()
        assert (row.state, row.observed_missing) == (TransactionState.SENT, look)
    assert wallet.watch() == 1
    row.refresh_from_db()
    assert (row.state, row.nonce, row.observed_missing) == (TransactionState.QUEUED, None, 0)
    assert row.attempts.get().state == AttemptState.DISPLACED
    assert [event.what for event in row.events.all()] == [TransactionEvent.What.DISPLACED]
    assert "nonce_stolen" in [getattr(record, "event", "") for record in caplog.records]
    assert wallet.broadcast() == 1
    row.refresh_from_db()
    assert (row.state, row.nonce, row.attempts.count()) == (TransactionState.SENT, 1, 2)


def test_a_receipt_that_shows_up_ends_the_suspicion(wallet: Wallet, peer: ScriptedRpc) -> None:
    """op-txmgr: nonce too low after one's own transaction was mined goes on waiting."""
    row = _sent(wallet)
    peer.on("eth_getTransactionCount", hex(1))
    wallet.watch()
    wallet.watch()
    peer.on("eth_getTransactionReceipt", receipt(row.attempts.get().hash))
    wallet.watch()
    row.refresh_from_db()
    assert (row.state, row.nonce, row.observed_missing) == (TransactionState.FINAL, 0, 0)


def test_a_reorg_that_gives_the_nonce_back_resets_the_count(wallet: Wallet, peer: ScriptedRpc) -> None:
    """op-txmgr SendState: a reorg resets the nonce-too-low count."""
    row = _sent(wallet)
    for count in (1, 1, 0, 1, 1):
        peer.on("eth_getTransactionCount", hex(count))
        wallet.watch()
    row.refresh_from_db()
    assert (row.state, row.observed_missing) == (TransactionState.SENT, 2)


def test_only_a_final_block_counts_against_a_transaction(wallet: Wallet, peer: ScriptedRpc) -> None:
    wallet.limit(confirmations=5)
    row = _sent(wallet)
    peer.on("eth_getTransactionCount", hex(1))  # the head is block 1: nothing is five deep
    for _ in range(OBSERVATIONS + 1):
        wallet.watch()
    row.refresh_from_db()
    assert (row.state, row.observed_missing) == (TransactionState.SENT, 0)


def test_a_node_without_old_state_is_no_evidence(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = _sent(wallet)
    peer.on(
        "eth_getTransactionCount",
        lambda params: hex(1) if params[1] == "latest" else NodeError("missing trie node"),
    )
    for _ in range(OBSERVATIONS + 1):
        wallet.watch()
    row.refresh_from_db()
    assert (row.state, row.observed_missing) == (TransactionState.SENT, 0)


def test_a_gap_that_somebody_else_filled_needs_no_second_filling(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = _sent(wallet)
    Transaction.objects.filter(pk=row.pk).update(nonce=1)
    row.attempts.update(nonce=1)
    wallet.broadcast()
    filler = Transaction.objects.get(kind=TransactionKind.FILL)
    peer.on("eth_getTransactionCount", hex(1))
    for _ in range(OBSERVATIONS):
        wallet.watch()
    filler.refresh_from_db()
    assert (filler.state, filler.nonce) == (TransactionState.CANCELLED, None)
    assert wallet.broadcast() == 0


def test_an_unfinished_look_changes_nothing(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = _sent(wallet)
    peer.on("eth_getTransactionCount", hex(1))
    peer.on("eth_getTransactionReceipt", AWAY)
    with pytest.raises(Exception, match="RPC nodes"):
        wallet.watch()
    row.refresh_from_db()
    assert row.observed_missing == 0


@pytest.fixture
def account(anvil_url: str) -> LocalAccount:
    account: LocalAccount = Account.create()
    local.fund(anvil_url, address=account.address, wei=10**20)
    return account


@pytest.fixture
def on_anvil(anvil_url: str, account: LocalAccount, clock: Clock) -> Iterator[Wallet]:
    local.set_automine(anvil_url, enabled=False)
    yield wallet_on(anvil_url, marketplace=_NOBODY, account=account)
    local.rpc(anvil_url, "anvil_dropAllTransactions")
    local.set_automine(anvil_url, enabled=True)


def _steal(url: str, account: LocalAccount, *, nonce: int) -> None:
    """The same key in another wallet."""
    signed = account.sign_transaction(
        {
            "chainId": local.CHAIN_ID,
            "nonce": nonce,
            "to": account.address,
            "value": 1,
            "gas": 21_000,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 10**10,
        }
    )
    local.rpc(url, "eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()])


def _mined(url: str, account: LocalAccount) -> int:
    return int(local.rpc(url, "eth_getTransactionCount", [account.address, "latest"]), 16)


def _settle(wallet: Wallet, url: str, clock: Clock, *, rounds: int = 6) -> None:
    for _ in range(rounds):
        wallet.broadcast()
        local.mine(url)
        wallet.watch()
        clock.offset += timedelta(seconds=31)


def test_the_middle_of_five_that_was_dropped_is_sent_again_and_all_are_mined_once(
    on_anvil: Wallet, anvil_url: str, account: LocalAccount, clock: Clock
) -> None:
    rows = [on_anvil.enqueue(f"row {number}", call=on_anvil.call(number)) for number in range(5)]
    assert on_anvil.broadcast() == 5
    local.rpc(anvil_url, "anvil_dropTransaction", [rows[2].attempts.get().hash])
    _settle(on_anvil, anvil_url, clock)
    assert {row.state for row in Transaction.objects.all()} == {TransactionState.FINAL}
    assert _mined(anvil_url, account) == 5
    assert Receipt.objects.count() == 5
    assert all(row.attempts.count() == 1 for row in rows)


def test_a_nonce_stolen_on_a_chain_costs_one_nonce_and_no_work(
    on_anvil: Wallet, anvil_url: str, account: LocalAccount, clock: Clock
) -> None:
    rows = [on_anvil.enqueue(f"row {number}", call=on_anvil.call(number)) for number in range(3)]
    on_anvil.broadcast()
    local.rpc(anvil_url, "anvil_dropTransaction", [rows[1].attempts.get().hash])
    _steal(anvil_url, account, nonce=1)
    _settle(on_anvil, anvil_url, clock)
    assert {row.state for row in Transaction.objects.all()} == {TransactionState.FINAL}
    assert sorted(Transaction.objects.values_list("nonce", flat=True)) == [0, 2, 3]
    assert _mined(anvil_url, account) == 4


@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_a_reorg_of_any_depth_ends_with_everything_mined_once(
    on_anvil: Wallet, anvil_url: str, account: LocalAccount, clock: Clock, depth: int
) -> None:
    """Invariant 12."""
    on_anvil.limit(confirmations=depth + 1)
    local.mine(anvil_url, blocks=depth + 2)
    for number in range(depth):
        on_anvil.enqueue(f"row {number}", call=on_anvil.call(number))
        on_anvil.broadcast()
        local.mine(anvil_url)
        on_anvil.watch()
    assert TransactionState.FINAL not in Transaction.objects.values_list("state", flat=True)
    local.reorganise(anvil_url, depth=depth)
    on_anvil.watch()
    assert Receipt.objects.count() < depth
    _settle(on_anvil, anvil_url, clock)
    local.mine(anvil_url, blocks=depth + 1)
    on_anvil.watch()
    on_anvil.watch()
    assert {row.state for row in Transaction.objects.all()} == {TransactionState.FINAL}
    assert _mined(anvil_url, account) == depth == Receipt.objects.count()
