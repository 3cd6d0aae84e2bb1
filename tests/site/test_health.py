"""What a node says of itself: how its settlement stands is told, without an address or a secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.test import Client
from django.utils import timezone

from settlement import ledger
from settlement.chain import local
from settlement.chain.client import ChainUnavailable
from settlement.host_chain import chain_client, host_chain
from settlement.models import EarningKind, EarningTotal, Sender
from settlement.txmanager import quotes
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "0x" + "4c" * 32
SECRET = "secret-of-the-operator"


@pytest.fixture
def sender(settings: LazySettings) -> Iterator[Sender]:
    """A node with a key and a deployment, whose RPC node is nowhere to be reached."""
    nowhere = f"http://127.0.0.1:{local.free_port()}/v2/{SECRET}"
    settings.ENVIRONMENT = replace(
        settings.ENVIRONMENT, chain_id=84532, rpc_urls=(nowhere,), host_private_key=KEY, embedded_chain=False
    )
    host_chain.cache_clear()
    chain = host_chain()
    yield Sender.objects.create(chain_id=84532, address=chain.host or "")
    host_chain.cache_clear()


def told(path: str) -> Any:
    answer = Client().get(path)
    assert SECRET not in answer.content.decode()
    assert "127.0.0.1" not in answer.content.decode()
    return answer.json()


def test_a_paused_sender_is_told_with_its_reason_and_only_while_it_pauses(sender: Sender) -> None:
    assert told("/status")["settlement"]["sender_paused"] == ""
    reason = "cannot pay for gas: insufficient funds"
    Sender.objects.update(paused_until=timezone.now() + timedelta(minutes=1), paused_reason=reason)
    for path, warnings in (("/status", "health_warnings"), ("/health", "warnings")):
        body = told(path)
        assert body["settlement"]["sender_paused"] == reason
        assert f"Claims are not sent for now: {reason}" in body[warnings]
    Sender.objects.update(paused_until=timezone.now() - timedelta(minutes=1))
    assert told("/status")["settlement"]["sender_paused"] == ""


def test_an_rpc_node_is_told_by_its_position_with_what_is_wrong_with_it(sender: Sender) -> None:
    for _ in range(3):
        with pytest.raises(ChainUnavailable):
            chain_client().head()
    [node] = told("/status")["settlement"]["rpc_nodes"]
    assert (node["name"], node["standing"]) == ("RPC node 1", "resting")
    assert node["reason"] and node["failures"] >= 3
    assert any(line.startswith("RPC node 1 is resting") for line in told("/health")["warnings"])
    assert any(line.startswith("The chain does not answer") for line in told("/readyz")["issues"])


def test_the_gas_of_a_day_is_told_beside_its_budget(
    sender: Sender, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = settings.ENVIRONMENT.limits.daily_budget
    standing = told("/status")["settlement"]
    assert (standing["gas_spent_wei"], standing["gas_budget_wei"]) == ("0", str(budget))
    monkeypatch.setattr(quotes, "spent", lambda **_: budget)
    assert told("/status")["settlement"]["gas_spent_wei"] == str(budget)
    assert any("gas budget of a day is used up" in line for line in told("/status")["health_warnings"])


def test_the_last_check_of_the_ledger_is_told_until_the_next(sender: Sender) -> None:
    assert told("/health")["settlement"]["ledger"] == {"violations": {}, "mismatches": 0, "checked_at": {}}
    factories.make_world()
    total = EarningTotal.objects.filter(scope="all", kind=EarningKind.HOST)
    right = total.get().booked
    total.update(booked=1)
    ledger.check_database()
    body = told("/health")
    assert body["settlement"]["ledger"]["violations"]["I8"] == body["settlement"]["ledger"]["mismatches"] == 1
    assert list(body["settlement"]["ledger"]["checked_at"]) == ["database"]
    assert "The ledger has violations (I8: 1). Run manage.py verify_ledger." in body["warnings"]
    total.update(booked=right)
    ledger.check_database()
    assert told("/health")["settlement"]["ledger"]["mismatches"] == 0


def test_a_node_without_a_key_has_no_sender_to_speak_of(settings: LazySettings) -> None:
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, host_private_key=None, host_keystore=None)
    host_chain.cache_clear()
    standing = told("/status")["settlement"]
    host_chain.cache_clear()
    assert (standing["sender_paused"], standing["gas_spent_wei"], standing["gas_budget_wei"]) == ("", None, None)
