"""Bumps and cancels as operators ask for them: on the command line and on a transaction's page."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from jobs.models import AppendOnlyError
from settlement.models import Transaction, TransactionEvent, TransactionState
from settlement.txmanager import quotes
from settlement.txmanager.fees import gas_limit_for
from tests.fakes.scripted_rpc import NodeError, ScriptedRpc, receipt
from tests.settlement.conftest import Wallet

pytestmark = pytest.mark.django_db


def _say(*words: Any) -> str:
    out = io.StringIO()
    call_command("transactions", *map(str, words), stdout=out)
    return out.getvalue()


def test_a_list_names_what_is_unfinished_and_why_the_sender_pauses(wallet: Wallet, peer: ScriptedRpc) -> None:
    row = wallet.enqueue("claim:7")
    wallet.broadcast()
    peer.on("eth_estimateGas", NodeError("insufficient funds for gas * price + value"))
    waiting = wallet.enqueue("claim:8")
    wallet.broadcast()
    said = _say("list")
    assert f"{row.pk}  sent  nonce 0  complete  claim:7" in said
    assert f"{waiting.pk}  queued  nonce -" in said
    assert "is paused until" in said
    assert "claim:7" not in _say("list", "--state", "queued")


def test_one_is_shown_with_its_attempts_and_its_audit(wallet: Wallet) -> None:
    row = wallet.enqueue("claim:7")
    wallet.broadcast()
    _say("bump", row.pk, "--actor", "ada")
    wallet.broadcast()
    said = _say("show", row.pk)
    assert all(attempt.hash in said for attempt in row.attempts.all())
    assert row.attempts.count() == 2
    assert "bump_requested by ada" in said


def test_a_cancel_needs_a_reason_and_comes_too_late_for_what_has_ended(wallet: Wallet) -> None:
    row = wallet.enqueue()
    with pytest.raises(CommandError, match="--reason"):
        _say("cancel", row.pk)
    assert "cancelled" in _say("cancel", row.pk, "--reason", "by mistake", "--actor", "ada")
    row.refresh_from_db()
    assert row.state == TransactionState.CANCELLED
    with pytest.raises(CommandError, match="is cancelled: too late"):
        _say("cancel", row.pk, "--reason", "again")
    with pytest.raises(CommandError, match="there is no transaction 99"):
        _say("bump", 99)


def test_the_page_cancels_under_the_users_name_and_with_a_reason(wallet: Wallet, admin_client: Client) -> None:
    row = wallet.enqueue()
    address = reverse("admin:settlement_transaction_cancel_this", args=[row.pk])
    admin_client.post(address, {"_form_submitted": "True"})
    row.refresh_from_db()
    assert row.state == TransactionState.QUEUED  # no reason, no cancel
    answer = admin_client.post(address, {"_form_submitted": "True", "reason": "by mistake"})
    row.refresh_from_db()
    assert (answer.status_code, row.state) == (200, TransactionState.CANCELLED)
    event = row.events.get()
    assert (event.actor, event.reason) == ("admin", "by mistake")


def test_the_page_asks_for_a_bump(wallet: Wallet, admin_client: Client) -> None:
    row = wallet.enqueue()
    wallet.broadcast()
    address = reverse("admin:settlement_transaction_bump_this", args=[row.pk])
    admin_client.post(address, {"_form_submitted": "True"})
    row.refresh_from_db()
    assert row.bump_requested_at is not None


def test_who_may_only_look_can_ask_for_nothing(wallet: Wallet, client: Client) -> None:
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_transaction"))
    client.force_login(user)
    row = wallet.enqueue()
    for name in ("cancel_this", "bump_this"):
        address = reverse(f"admin:settlement_transaction_{name}", args=[row.pk])
        assert client.post(address, {"_form_submitted": "True", "reason": "x"}).status_code == 403
    assert Transaction.objects.get(pk=row.pk).state == TransactionState.QUEUED


def test_the_audit_is_append_only(wallet: Wallet) -> None:
    row = wallet.enqueue()
    _say("cancel", row.pk, "--reason", "by mistake")
    event = row.events.get()
    with pytest.raises(AppendOnlyError):
        event.delete()
    with pytest.raises(AppendOnlyError):
        event.save()
    with pytest.raises(AppendOnlyError):
        TransactionEvent.objects.update(actor="nobody")


def test_a_quote_names_what_is_likely_and_what_is_possible(wallet: Wallet) -> None:
    quote = quotes.quote(wallet.client, wallet.call(), sender=wallet.signer.address, limits=wallet.limits)
    assert quote.expected_cost == 100_000 * (10**9 + 10**6)
    assert quote.worst_cost == gas_limit_for(100_000) * (2 * 10**9 + 10**6)


def test_a_rollups_data_fee_is_in_every_figure(wallet: Wallet, peer: ScriptedRpc) -> None:
    wallet.limit(fee_oracle="0x" + "42" * 20)
    peer.on("eth_call", "0x" + (4 * 10**12).to_bytes(32, "big").hex())
    quote = quotes.quote(wallet.client, wallet.call(), sender=wallet.signer.address, limits=wallet.limits)
    assert quote.l1_fee == 5 * 10**12  # a quarter on top
    assert quote.expected_cost == 100_000 * (10**9 + 10**6) + 5 * 10**12
    row = wallet.enqueue()
    wallet.broadcast()
    attempt = row.attempts.get()
    assert attempt.l1_fee == 5 * 10**12
    assert attempt.worst_cost == quote.worst_cost


def test_the_usual_cost_is_that_of_the_last_of_its_kind(wallet: Wallet, peer: ScriptedRpc) -> None:
    def usual() -> int | None:
        return quotes.usual_cost(
            wallet.client,
            kind=row.kind,
            sender=wallet.signer.address,
            limits=wallet.limits,  # type: ignore[arg-type]
        )

    row = wallet.enqueue()
    assert usual() is None
    wallet.broadcast()
    peer.on("eth_getTransactionReceipt", receipt(row.attempts.get().hash))
    wallet.watch()
    assert usual() == 21_000 * (10**9 + 10**6)
