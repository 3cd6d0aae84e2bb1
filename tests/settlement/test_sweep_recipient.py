"""FABSTIR_SWEEP_TO is changed while a sweep is under way: it is booked where it went, or not sent at all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import IntegrityError

from settlement import sweep_transfers, sweeping, withdrawals
from settlement.chain.marketplace import NATIVE_COIN
from settlement.chain.signer import LocalSigner
from settlement.host_chain import signing_rules
from settlement.models import (
    Earning,
    EarningKind,
    Transaction,
    TransactionState,
    Withdrawal,
    WithdrawalKind,
    WithdrawalState,
)
from tests import factories
from tests.settlement.conftest import Settling
from tests.settlement.test_withdrawals import HOST_SHARE, SWEEP_TO, earn, finish, usdc

pytestmark = pytest.mark.django_db

ELSEWHERE = "0x" + "7A" * 20
_migration = importlib.import_module("settlement.migrations.0006_withdrawal_recipient")


@pytest.fixture
def sweep_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def change(address: str | None) -> None:
        changed = replace(settings.ENVIRONMENT, sweep_to=address, sweep_above={"usdc": HOST_SHARE - 1})
        monkeypatch.setattr(settings, "ENVIRONMENT", changed)

    change(SWEEP_TO)
    return change


@pytest.fixture
def sweeper(settling: Settling) -> Settling:
    """A host whose key may send to the address that was configured when it started."""
    chain = settling.chain
    rules = signing_rules(chain.deployment, chain_id=chain.deployment.chain_id, limits=chain.limits, sweep_to=SWEEP_TO)
    return replace(settling, chain=replace(chain, signer=LocalSigner(settling.account, rules=rules)))


def _record(host: Settling, key: str = "first", **options: Any) -> Withdrawal:
    terms = {"kind": WithdrawalKind.SWEEP, "tokens": [NATIVE_COIN], "amount": 10**15, "recipient": SWEEP_TO, **options}
    return withdrawals.record(host.chain, request_key=key, actor="a test", **terms)


def test_a_sweep_that_was_sent_is_booked_for_the_address_it_went_to(
    sweeper: Settling, sweep_to: Callable[[str | None], None]
) -> None:
    earn(sweeper)
    assert sweeping.sweep_due(sweeper.chain) == 1
    finish(sweeper)
    assert sweeping.sweep_due(sweeper.chain) == 1
    withdrawals.advance(sweeper.chain)
    sweeper.broadcast()
    sweep_to(ELSEWHERE)
    finish(sweeper)
    row = Withdrawal.objects.get(kind=WithdrawalKind.SWEEP)
    assert (row.state, row.recipient) == (WithdrawalState.FINAL, SWEEP_TO)
    assert [swept.amount for swept in Earning.objects.filter(kind=EarningKind.SWEEP)] == [HOST_SHARE]
    assert sweeper.world.balance(SWEEP_TO, usdc(sweeper)) == HOST_SHARE


def test_a_sweep_in_the_queue_is_given_up_and_blocks_no_other(
    sweeper: Settling, sweep_to: Callable[[str | None], None]
) -> None:
    row = _record(sweeper)
    assert withdrawals.advance(sweeper.chain) == 1
    assert Transaction.objects.get().state == TransactionState.QUEUED
    sweep_to(ELSEWHERE)
    assert [withdrawals.advance(sweeper.chain) for _ in range(3)] == [1, 1, 0]
    row.refresh_from_db()
    assert row.state == WithdrawalState.FAILED
    assert f"to go to {SWEEP_TO}; FABSTIR_SWEEP_TO is {ELSEWHERE} now" in row.reason
    sweeper.broadcast()
    assert Transaction.objects.get().state == TransactionState.CANCELLED
    assert _record(sweeper, "second", recipient=ELSEWHERE).recipient == ELSEWHERE.lower()


@pytest.mark.parametrize(("address", "why"), [(None, "is not set any more"), (ELSEWHERE, f"is {ELSEWHERE} now")])
def test_a_sweep_that_was_only_asked_for_is_given_up_and_the_rows_after_it_go_on(
    sweeper: Settling, sweep_to: Callable[[str | None], None], address: str | None, why: str
) -> None:
    earn(sweeper)
    swept = _record(sweeper)
    withdrawn = _record(
        sweeper, "second", kind=WithdrawalKind.WITHDRAW, tokens=[usdc(sweeper)], amount=None, recipient=""
    )
    sweep_to(address)
    assert withdrawals.advance(sweeper.chain) == 2
    swept.refresh_from_db()
    withdrawn.refresh_from_db()
    assert (swept.state, withdrawn.state) == (WithdrawalState.FAILED, WithdrawalState.SENT)
    assert why in swept.reason
    assert swept.finished_at is not None


def test_a_sweep_whose_recipient_stays_is_sent_there(sweeper: Settling, sweep_to: Callable[[str | None], None]) -> None:
    sweep_to("0x" + "5E" * 20)
    row = _record(sweeper)
    before = sweeper.world.balance(SWEEP_TO, NATIVE_COIN)
    finish(sweeper)
    row.refresh_from_db()
    assert row.state == WithdrawalState.FINAL
    assert sweeper.world.balance(SWEEP_TO, NATIVE_COIN) - before == 10**15


def test_the_database_refuses_a_sent_sweep_without_a_recipient() -> None:
    with pytest.raises(IntegrityError, match="a_sent_sweep_has_a_recipient"):
        Withdrawal.objects.create(
            deployment=factories.DEPLOYMENT,
            kind=WithdrawalKind.SWEEP,
            tokens=[NATIVE_COIN],
            state=WithdrawalState.SENT,
            request_key="first",
            transaction=factories.make_transaction(),
        )


@pytest.mark.parametrize("token", [NATIVE_COIN, factories.USDC])
def test_sweeps_of_before_get_their_recipient_from_their_transaction(sweeper: Settling, token: str) -> None:
    row = _record(sweeper, tokens=[token], recipient=ELSEWHERE)
    call = sweep_transfers.call(row)
    sent = factories.make_transaction(to=str(call.to), data="0x" + call.data.hex())
    Withdrawal.objects.update(transaction=sent, recipient="", state=WithdrawalState.FAILED)
    _migration.keep_recipients(apps, None)
    row.refresh_from_db()
    assert row.recipient == ELSEWHERE.lower()
