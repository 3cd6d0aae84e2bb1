"""Withdrawals on an anvil: previewed, sent once, booked from the contract's event, and refused with a reason."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import IntegrityError
from django.test import Client
from django.urls import reverse

from jobs.models import Session
from settlement import earnings, ledger_rows, sweeping, withdrawals
from settlement.chain.signer import LocalSigner, host_rules
from settlement.models import (
    CheckpointState,
    Earning,
    EarningKind,
    Transaction,
    TransactionKind,
    TransactionState,
    Withdrawal,
    WithdrawalKind,
    WithdrawalState,
)
from settlement.txmanager import commands
from settlement.withdrawals import WithdrawalRefused
from tests.chain.world import ETH
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

HOST_SHARE = 180_000  # 100 tokens at 0.002 USDC less 10 %
SWEEP_TO = "0x" + "5e" * 20


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(**values: Any) -> None:
        monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, **values))

    return change


@pytest.fixture
def host(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settling]:
    """A host whose key may do what a host's may, with 100 tokens claimed of a job."""
    rules = host_rules(
        chain_id=settling.chain.deployment.chain_id,
        marketplace=settling.chain.deployment.job_marketplace,
        host_earnings=settling.chain.deployment.host_earnings,
        node_registry=settling.chain.deployment.node_registry,
        usdc=settling.chain.deployment.usdc,
        sweep_to=SWEEP_TO,
        max_fee_per_gas=settling.chain.limits.max_fee_per_gas,
        max_cost=10**18,
        daily_cost=10**20,
    )
    signer = LocalSigner(settling.account, rules=rules)
    yield replace(settling, chain=replace(settling.chain, signer=signer))


def usdc(host: Settling) -> str:
    return host.world.usdc.address.lower()


def earn(host: Settling, *, tokens: int = 100) -> Session:
    session = host.open_session()
    host.generate(session, tokens)
    host.settle()
    assert host.checkpoints(session)[0].state == CheckpointState.SETTLED
    return session


def request(host: Settling, key: str = "first", **options: Any) -> Withdrawal:
    terms = {"tokens": [usdc(host)], "request_key": key, "actor": "a test", **options}
    return withdrawals.request(host.chain, **terms)


def finish(host: Settling) -> None:
    for _ in range(2):
        withdrawals.advance(host.chain)
        host.broadcast()
        host.watch()
        host.watch()
    withdrawals.advance(host.chain)
    earnings.book_gas_due(host.chain)


def test_a_withdrawal_pays_the_host_and_is_booked_from_its_event(host: Settling) -> None:
    session = earn(host)
    before = host.world.balance(host.world.host, usdc(host))
    row = request(host)
    assert row.state == WithdrawalState.SENT
    finish(host)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FINAL
    assert host.world.balance(host.world.host, usdc(host)) - before == HOST_SHARE
    (booked,) = Earning.objects.filter(kind=EarningKind.WITHDRAWAL)
    assert (booked.amount, booked.token, booked.session) == (HOST_SHARE, usdc(host), None)
    assert host.states(session) == [CheckpointState.WITHDRAWN]
    gas = Earning.objects.filter(kind=EarningKind.GAS, transaction_hash=booked.transaction_hash)
    assert gas.count() == 1
    assert not list(ledger_rows.totals_add_up())


def test_a_double_click_withdraws_once(host: Settling) -> None:
    earn(host)
    assert {request(host).pk for _ in range(3)} == {Withdrawal.objects.get().pk}
    finish(host)
    assert request(host).state == WithdrawalState.FINAL
    assert Transaction.objects.filter(kind=TransactionKind.WITHDRAW).count() == 1


def test_one_key_does_not_stand_for_two_withdrawals(host: Settling) -> None:
    earn(host)
    request(host)
    with pytest.raises(WithdrawalRefused, match="already stands for another"):
        request(host, amount=5)


def test_a_second_withdrawal_waits_for_the_first(host: Settling) -> None:
    earn(host)
    request(host, amount=1)
    with pytest.raises(WithdrawalRefused, match="under way"):
        request(host, "second")
    with pytest.raises(IntegrityError):
        Withdrawal.objects.create(
            deployment=host.chain.key, tokens=[ETH], request_key="by hand", requested_by="somebody"
        )


def test_a_part_covers_the_oldest_checkpoints_that_it_pays_for(host: Settling) -> None:
    session = host.open_session()
    for _ in range(3):
        host.generate(session, 100)
        host.settle()
    assert host.states(session) == [CheckpointState.SETTLED] * 3
    request(host, amount=2 * HOST_SHARE - 1)
    finish(host)
    assert host.states(session) == [CheckpointState.WITHDRAWN, CheckpointState.SETTLED, CheckpointState.SETTLED]
    request(host, "second", amount=1)
    finish(host)
    assert host.states(session) == [CheckpointState.WITHDRAWN, CheckpointState.WITHDRAWN, CheckpointState.SETTLED]


def test_several_tokens_go_in_one_transaction(host: Settling) -> None:
    earn(host)
    _credit_native(host)
    found = withdrawals.preview(host.chain, tokens=withdrawals.tokens_named(host.chain, "all"))
    assert {holding.token: holding.amount for holding in found.holdings}[usdc(host)] == HOST_SHARE
    row = request(host, tokens=withdrawals.tokens_named(host.chain, "all"))
    assert sorted(row.tokens) == sorted([ETH, usdc(host)])
    finish(host)
    booked = dict(Earning.objects.filter(kind=EarningKind.WITHDRAWAL).values_list("token", "amount"))
    assert booked == {usdc(host): HOST_SHARE, ETH: 90 * 10**12}
    assert Transaction.objects.filter(kind=TransactionKind.WITHDRAW).count() == 1


def _credit_native(host: Settling) -> None:
    """Another job, in ether, claimed by hand: 100 tokens at 10**12 wei."""
    world = host.world
    job_id = world.open_eth()
    host.pass_time(10)
    world.send(world.claim(job_id, 100), sender=world.host)


def test_a_preview_tells_balance_gas_and_net_and_changes_nothing(host: Settling) -> None:
    _credit_native(host)
    found = withdrawals.preview(host.chain, tokens=[ETH], amount=10**12)
    (holding,) = found.holdings
    assert (holding.balance, holding.amount) == (90 * 10**12, 10**12)
    assert 0 < found.expected_cost <= found.worst_cost
    assert found.net_native == 10**12 - found.expected_cost
    assert found.objection == ""
    assert not Withdrawal.objects.exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"amount": HOST_SHARE + 1}, "0.180000 USDC"),
        ({"tokens": [ETH]}, "holds nothing"),
        ({"tokens": [ETH, "0x" + "99" * 20], "amount": 1}, "exactly one token"),
        ({"amount": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_withdrawn_is_refused_with_the_reason(host: Settling, options: Any, why: str) -> None:
    earn(host)
    for force in (False, True):
        with pytest.raises(WithdrawalRefused, match=why):
            request(host, force=force, **options)
    assert not Withdrawal.objects.exists()


def test_gas_worth_more_than_the_rule_allows_is_refused_unless_forced(
    host: Settling, environment: Callable[..., None]
) -> None:
    earn(host)
    environment(value_to_gas_ratio=10**6, native_price_usdc=3_000_000_000)
    with pytest.raises(WithdrawalRefused, match="FABSTIR_VALUE_TO_GAS_RATIO"):
        request(host)
    row = request(host, force=True)
    assert row.forced
    finish(host)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FINAL


def test_a_token_without_a_price_is_not_measured_by_the_rule(host: Settling, environment: Callable[..., None]) -> None:
    earn(host)
    environment(value_to_gas_ratio=10**6, native_price_usdc=None)
    assert withdrawals.preview(host.chain, tokens=[usdc(host)]).value is None
    assert request(host).state == WithdrawalState.SENT


def test_a_withdrawal_made_by_hand_is_booked_from_its_event(host: Settling) -> None:
    session = earn(host)
    world = host.world
    receipt = world.send(world.earnings.withdraw_all(world.usdc.address), sender=world.host)
    logs = host.chain.client.logs(
        addresses=host.chain.marketplace.addresses,
        from_block=receipt["blockNumber"],
        to_block=receipt["blockNumber"],
    )
    for _ in range(2):
        assert withdrawals.apply_events(host.chain, logs) == 1
    assert [row.amount for row in Earning.objects.filter(kind=EarningKind.WITHDRAWAL)] == [HOST_SHARE]
    assert host.states(session) == [CheckpointState.WITHDRAWN]


def test_money_taken_by_hand_meanwhile_fails_the_withdrawal_with_its_reason(host: Settling) -> None:
    earn(host)
    row = request(host)
    host.world.send(host.world.earnings.withdraw_all(host.world.usdc.address), sender=host.world.host)
    finish(host)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FAILED
    assert "NothingToWithdraw" in row.reason
    assert not Earning.objects.filter(kind=EarningKind.WITHDRAWAL).exists()


def test_a_cancelled_withdrawal_fails_and_another_may_follow(host: Settling) -> None:
    earn(host)
    row = request(host)
    assert row.transaction is not None
    assert commands.cancel(row.transaction_id, actor="a test", reason="changed my mind")
    finish(host)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FAILED
    assert TransactionState.CANCELLED in row.reason
    assert request(host, "second").state == WithdrawalState.SENT


def test_a_crash_between_request_and_outbox_is_repaired_by_the_next_pull(host: Settling) -> None:
    earn(host)
    row = withdrawals.record(
        host.chain,
        kind=WithdrawalKind.WITHDRAW,
        tokens=[usdc(host)],
        amount=None,
        request_key="first",
        actor="a test",
    )
    assert row.state == WithdrawalState.REQUESTED
    finish(host)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FINAL


def test_a_sweep_goes_to_the_operators_address_and_leaves_the_gas(
    host: Settling, environment: Callable[..., None]
) -> None:
    earn(host)
    environment(sweep_to=SWEEP_TO, sweep_above={"usdc": HOST_SHARE - 1, "native": 10**18})
    assert sweeping.sweep_due(host.chain) > 0
    for _ in range(6):
        finish(host)
        sweeping.sweep_due(host.chain)
    assert host.world.balance(SWEEP_TO, usdc(host)) == HOST_SHARE
    swept = dict(Earning.objects.filter(kind=EarningKind.SWEEP).values_list("token", "amount"))
    assert swept[usdc(host)] == HOST_SHARE
    assert swept[ETH] == host.world.balance(SWEEP_TO, ETH) > 0
    assert host.world.balance(host.world.host, ETH) > host.chain.limits.daily_budget - 10**18
    assert set(Withdrawal.objects.values_list("state", flat=True)) == {WithdrawalState.FINAL}
    assert sweeping.sweep_due(host.chain) == 0


def test_nothing_is_swept_below_the_threshold_or_without_one(host: Settling, environment: Callable[..., None]) -> None:
    earn(host)
    assert sweeping.sweep_due(host.chain) == 0
    environment(sweep_to=SWEEP_TO, sweep_above={"usdc": HOST_SHARE})
    assert sweeping.sweep_due(host.chain) == 0
    assert not Withdrawal.objects.exists()


def test_a_sweep_that_failed_is_not_repeated_within_the_hour(host: Settling, environment: Callable[..., None]) -> None:
    earn(host)
    environment(sweep_to=SWEEP_TO, sweep_above={"usdc": 1})
    assert sweeping.sweep_due(host.chain) == 1
    host.world.send(host.world.earnings.withdraw_all(host.world.usdc.address), sender=host.world.host)
    withdrawals.apply_events(host.chain, [])
    finish(host)
    assert Withdrawal.objects.get(kind=WithdrawalKind.WITHDRAW).state == WithdrawalState.FAILED
    earn(host)
    assert sweeping._withdraw_due(host.chain, {usdc(host): 1}) == 0
    host.pass_time(3700)
    assert sweeping._withdraw_due(host.chain, {usdc(host): 1}) == 1


@pytest.fixture
def _configured(host: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("settlement.admin.withdrawal", "settlement.management.commands.withdraw"):
        monkeypatch.setattr(f"{module}.host_chain", lambda: host.chain)


@pytest.mark.usefixtures("_configured")
def test_the_command_shows_a_preview_and_withdraws(host: Settling) -> None:
    earn(host)
    out = io.StringIO()
    call_command("withdraw", token="usdc", preview=True, stdout=out)
    assert "0.180000 USDC of 0.180000 USDC" in out.getvalue()
    assert not Withdrawal.objects.exists()
    for _ in range(2):
        call_command("withdraw", token="usdc", key="once", stdout=out)
    finish(host)
    assert Withdrawal.objects.get().state == WithdrawalState.FINAL
    with pytest.raises(CommandError, match="holds nothing"):
        call_command("withdraw", token="usdc", stdout=out)
    with pytest.raises(CommandError, match="no token"):
        call_command("withdraw", token="dollars", stdout=out)


@pytest.mark.usefixtures("_configured")
def test_the_page_previews_and_a_confirmation_sent_twice_withdraws_once(host: Settling, admin_client: Client) -> None:
    earn(host)
    address = reverse("admin:settlement_withdrawal_withdraw")
    form = admin_client.get(address).context["form"]
    asked = {"token": "usdc", "amount": "", "request_key": str(form["request_key"].value())}
    shown = admin_client.post(address, asked).content.decode()
    assert "0.180000 USDC" in shown
    assert "Withdraw now" in shown
    assert not Withdrawal.objects.exists()
    for _ in range(2):
        answer = admin_client.post(address, {**asked, "confirm": "yes"})
        assert answer.url == reverse("admin:settlement_withdrawal_change", args=[Withdrawal.objects.get().pk])
    assert "holds nothing" in admin_client.post(address, {**asked, "token": "native"}).content.decode()
    assert "no token here" in admin_client.post(address, {**asked, "token": "dollars"}).content.decode()


@pytest.mark.usefixtures("_configured")
def test_the_page_is_for_those_who_may_withdraw_and_needs_the_forms_own_token(host: Settling) -> None:
    earn(host)
    address = reverse("admin:settlement_withdrawal_withdraw")
    watcher = Client()
    watcher.force_login(User.objects.create_user("watcher", is_staff=True))
    assert watcher.get(address).status_code == 403
    forged = Client(enforce_csrf_checks=True)
    forged.force_login(User.objects.create_superuser("operator"))
    asked = {"token": "usdc", "confirm": "yes", "request_key": "00000000-0000-4000-8000-000000000000"}
    assert forged.post(address, asked).status_code == 403
    assert not Withdrawal.objects.exists()
