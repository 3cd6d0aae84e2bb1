"""One broadcaster for an account, and when the account pauses; against a scripted node."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from settlement.chain.client import ChainUnavailable
from settlement.models import Sender, Transaction, TransactionState
from settlement.txmanager import nonces, senders
from settlement.txmanager.turn import Turn
from tests.fakes.scripted_rpc import NodeError, ScriptedRpc, receipt, transaction_hash
from tests.settlement.conftest import Clock, Wallet

pytestmark = pytest.mark.django_db
ADDRESS = "0x" + "ab" * 20


def _acquire() -> senders.Lease | None:
    return senders.acquire(chain_id=1, address=ADDRESS)


def _state(row: Transaction) -> str:
    return str(Transaction.objects.get(pk=row.pk).state)


def test_a_lease_is_one_broadcasters_until_it_is_given_back() -> None:
    """Invariant 4."""
    first = _acquire()
    assert first is not None
    assert _acquire() is None
    senders.release(first)
    second = _acquire()
    assert second is not None
    assert second.fence == first.fence + 1


def test_a_lease_ends_by_itself_and_its_last_holder_can_store_nothing(wallet: Wallet, clock: Clock) -> None:
    first = senders.acquire(chain_id=wallet.chain_id, address=wallet.signer.address)
    assert first is not None
    clock.offset += senders.LEASE + timedelta(seconds=1)
    second = senders.acquire(chain_id=wallet.chain_id, address=wallet.signer.address)
    assert second is not None
    row = wallet.enqueue()
    turn = Turn(client=wallet.client, signer=wallet.signer, limits=wallet.limits, lease=first)
    with pytest.raises(senders.LeaseLost), transaction.atomic():
        senders.hold(turn.lease)
    with pytest.raises(senders.LeaseLost):
        nonces.start([], lease=first)
    assert _state(row) == TransactionState.QUEUED
    senders.release(first)
    assert Sender.objects.get(address=wallet.signer.address).holder == second.holder


def test_work_extends_the_lease(clock: Clock) -> None:
    lease = _acquire()
    assert lease is not None
    for _ in range(3):
        clock.offset += senders.LEASE - timedelta(seconds=1)
        with transaction.atomic():
            senders.hold(lease)
    assert _acquire() is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems wait for the lease's end")
def test_the_lease_of_a_process_that_was_killed_is_free_at_once() -> None:
    lease = _acquire()
    assert lease is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        Sender.objects.update(holder=senders._process(process.pid) + "/00000000")
        assert _acquire() is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        taken = _acquire()
    assert taken is not None
    assert taken.fence == lease.fence + 1


def test_a_process_of_another_machine_is_waited_for() -> None:
    assert _acquire() is not None
    Sender.objects.update(holder="elsewhere/pid:[1]/1/1/00000000")
    assert _acquire() is None


def test_while_another_broadcasts_nothing_is_sent_here(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = wallet.enqueue()
    lease = senders.acquire(chain_id=wallet.chain_id, address=wallet.signer.address)
    assert lease is not None
    assert wallet.broadcast() == 0
    assert peer.sent() == []
    senders.release(lease)
    assert wallet.broadcast() == 1
    assert _state(row) == TransactionState.SENT


def test_a_lease_has_an_end_and_a_pause_a_reason() -> None:
    assert _acquire() is not None
    with pytest.raises(IntegrityError), transaction.atomic():
        Sender.objects.update(leased_until=None)
    with pytest.raises(IntegrityError), transaction.atomic():
        Sender.objects.update(paused_until=timezone.now(), paused_reason="")


def test_without_money_for_gas_the_account_pauses_and_takes_no_nonce(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock
) -> None:
    """Invariant 15."""
    peer.on("eth_estimateGas", NodeError("insufficient funds for gas * price + value"))
    row = wallet.enqueue()
    assert wallet.broadcast() == 0
    row.refresh_from_db()
    assert (row.state, row.nonce) == (TransactionState.QUEUED, None)
    sender = Sender.objects.get()
    assert "cannot pay for gas" in sender.paused_reason
    peer.on("eth_estimateGas", hex(100_000))
    clock.offset += timedelta(seconds=30)
    assert wallet.broadcast() == 0
    clock.offset += timedelta(seconds=31)
    assert wallet.broadcast() == 1
    sender.refresh_from_db()
    assert (sender.paused_reason, sender.paused_until) == ("", None)


def test_money_that_runs_out_while_sending_keeps_the_nonce_and_the_rest_unsent(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock
) -> None:
    peer.on("eth_sendRawTransaction", NodeError("insufficient funds for gas * price + value"))
    rows = [wallet.enqueue(f"row {number}") for number in range(3)]
    assert wallet.broadcast() == 0
    assert len(peer.sent()) == 1  # what stops the first stops all
    assert [_state(row) for row in rows] == [TransactionState.IN_PROGRESS] * 3
    peer.on("eth_sendRawTransaction", lambda params: transaction_hash(params[0]))
    clock.offset += timedelta(minutes=2)
    assert wallet.broadcast() == 3
    assert [Transaction.objects.get(pk=row.pk).nonce for row in rows] == [0, 1, 2]
    assert peer.sent()[0] == peer.sent()[1]


def test_the_daily_budget_stops_what_is_new_and_says_so(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant 10 of the transaction manager: bleeding stops, with an alert."""
    one = 125_000 * (2 * 10**9 + 10**6)
    wallet.limit(daily_budget=2 * one)
    rows = [wallet.enqueue(f"row {number}") for number in range(3)]
    assert wallet.broadcast() == 2
    assert [_state(row) for row in rows] == [TransactionState.SENT, TransactionState.SENT, TransactionState.QUEUED]
    rows[2].refresh_from_db()
    assert "FABSTIR_DAILY_GAS_BUDGET_WEI" in rows[2].reason
    assert "gas_budget_spent" in [getattr(record, "event", "") for record in caplog.records]
    clock.offset += timedelta(minutes=2)
    wallet.broadcast()
    assert len(peer.sent()) == 4  # what is on its way goes on being sent
    # Mined for a fraction of what they might have cost, they leave room.
    peer.on("eth_getTransactionReceipt", lambda params: receipt(params[0]))
    wallet.watch()
    clock.offset += timedelta(minutes=2)
    assert wallet.broadcast() == 1


def test_what_costs_more_than_it_settles_waits_and_does_not_fail(
    wallet: Wallet, peer: ScriptedRpc, clock: Clock
) -> None:
    dear, cheap = wallet.enqueue("dear", cost_limit=10**6), wallet.enqueue("cheap")
    assert wallet.broadcast() == 1
    dear.refresh_from_db()
    assert (dear.state, dear.nonce) == (TransactionState.QUEUED, None)
    assert "above its limit of 1000000" in dear.reason
    assert _state(cheap) == TransactionState.SENT


def test_a_cost_limit_lowers_the_fee_cap_before_it_stops_anything(wallet: Wallet) -> None:
    limit = 125_000 * (15 * 10**8)
    row = wallet.enqueue(cost_limit=limit)
    assert wallet.broadcast() == 1
    attempt = row.attempts.get()
    assert attempt.worst_cost == limit
    assert attempt.max_fee_per_gas < 2 * 10**9


def test_no_more_than_the_limit_is_in_flight(wallet: Wallet, peer: ScriptedRpc) -> None:
    """Invariant 18."""
    wallet.limit(max_in_flight=3)
    for number in range(5):
        wallet.enqueue(f"row {number}")
    assert (wallet.broadcast(), wallet.broadcast()) == (3, 0)
    peer.on("eth_getTransactionReceipt", lambda params: receipt(params[0]))
    wallet.watch()
    assert wallet.broadcast() == 2


def test_nonces_are_given_by_priority_and_then_by_age(wallet: Wallet) -> None:
    wallet.enqueue("old")
    wallet.enqueue("urgent", priority=5)
    wallet.enqueue("new")
    wallet.broadcast()
    assert list(Transaction.objects.order_by("nonce").values_list("key", flat=True)) == ["urgent", "old", "new"]


def test_a_node_of_another_chain_gets_nothing(wallet: Wallet, peer: ScriptedRpc) -> None:
    """Invariant 16."""
    peer.on("eth_chainId", hex(1))
    row = wallet.enqueue()
    with suppress(ChainUnavailable):
        wallet.broadcast()
    assert peer.sent() == []
    assert _state(row) == TransactionState.QUEUED


def test_nonces_used_elsewhere_are_skipped_with_an_alert(
    wallet: Wallet, peer: ScriptedRpc, caplog: pytest.LogCaptureFixture
) -> None:
    wallet.enqueue("first")
    wallet.broadcast()
    peer.on("eth_getTransactionCount", hex(5))
    second = wallet.enqueue("second")
    wallet.broadcast()
    second.refresh_from_db()
    assert second.nonce == 5
    assert [event.what for event in second.events.all()] == ["fast_forwarded"]
    assert "nonce_fast_forward" in [getattr(record, "event", "") for record in caplog.records]
