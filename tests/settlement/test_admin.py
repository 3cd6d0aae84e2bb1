"""Admin pages of settlement and of the node, and the front page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.core.cache import cache
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs.models import ApiKey
from nodes.models import ServedModel
from settlement.models import (
    Attempt,
    Checkpoint,
    CheckpointState,
    ContractDeployment,
    Earning,
    Transaction,
    TransactionState,
)
from tests import factories

pytestmark = pytest.mark.django_db

OURS = [model for model in admin.site._registry if model._meta.app_label in ("nodes", "jobs", "settlement")]
READ_ONLY = [model for model in OURS if model not in (ServedModel, ApiKey)]


@pytest.fixture
def _world() -> Iterator[None]:
    factories.make_world()
    yield
    cache.clear()


def page(model: type[models.Model], kind: str, *arguments: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{kind}", args=arguments)


def test_every_kind_of_row_has_a_page() -> None:
    assert len(OURS) == 15


@pytest.mark.usefixtures("_world")
@pytest.mark.parametrize("model", OURS)
def test_list_detail_and_search_open(admin_client: Client, model: type[models.Model]) -> None:
    rows = list(model._default_manager.all())
    assert rows
    assert admin_client.get(page(model, "changelist")).status_code == 200
    for term in ("1", "0x" + "c1" * 20, factories.new_hash(), "words"):
        assert admin_client.get(page(model, "changelist"), {"q": term}).status_code == 200
    for row in rows:
        assert admin_client.get(page(model, "change", row.pk)).status_code == 200


@pytest.mark.usefixtures("_world")
@pytest.mark.parametrize("model", READ_ONLY)
def test_ledger_rows_cannot_be_touched(admin_client: Client, model: type[models.Model]) -> None:
    row = model._default_manager.first()
    assert row is not None
    before = list(model._default_manager.values())
    for answer in (
        admin_client.get(page(model, "add")),
        admin_client.post(page(model, "add"), {}),
        admin_client.post(page(model, "change", row.pk), {"state": "final", "amount": "1"}),
        admin_client.get(page(model, "delete", row.pk)),
        admin_client.post(page(model, "delete", row.pk), {"post": "yes"}),
    ):
        assert answer.status_code == 403
    admin_client.post(
        page(model, "changelist"), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert list(model._default_manager.values()) == before
    listed = admin_client.get(page(model, "changelist"))
    assert "delete_selected" not in listed.content.decode()


@pytest.mark.parametrize("model", [model for model in OURS if model not in (ContractDeployment, ServedModel)])
def test_list_of_many_rows_needs_no_more_queries(admin_client: Client, model: type[models.Model]) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert admin_client.get(page(model, "changelist")).status_code == 200
        return len(captured)

    factories.make_world(sessions=1)
    queries()  # what is read once per process
    few = queries()
    factories.make_world(sessions=8)
    assert queries() == few


def test_session_page_of_many_checkpoints_needs_no_more_queries(admin_client: Client) -> None:
    session = factories.make_world()[0]
    address = page(type(session), "change", session.pk)
    admin_client.get(address)
    with CaptureQueriesContext(connection) as few:
        admin_client.get(address)
    session.token_budget = 10_000
    session.save()
    for _ in range(10):
        factories.add_checkpoint(session)
    with CaptureQueriesContext(connection) as many:
        admin_client.get(address)
    assert len(many) == len(few)


def test_checkpoint_page_shows_money_timeline_and_transaction(admin_client: Client) -> None:
    factories.make_contracts()
    checkpoint = factories.add_checkpoint(factories.make_session(), tokens=200)
    text = shown(admin_client, page(Checkpoint, "change", checkpoint.pk))
    assert "0.360000 + 0.040000 = 0.400000 USDC" in text
    assert "90.00 % / 10.00 %" in text
    assert checkpoint.transaction.receipt.attempt.hash in text
    for event in checkpoint.events.all():
        assert f"{event.at:%Y-%m-%d %H:%M:%S}." in text
    states = re.findall(r"\b(sealed|proving|proved|queued|sent|mined|confirmed)\b", text.partition("Timeline")[2])
    assert states == [
        *("sealed", "sealed", "proving", "proving", "proved", "proved", "queued"),
        *("queued", "sent", "sent", "mined", "mined", "confirmed"),
    ]


def test_claim_under_another_fee_says_so(admin_client: Client) -> None:
    factories.make_contracts()
    checkpoint = factories.add_checkpoint(factories.make_session(), tokens=200)
    ContractDeployment.objects.filter(name="job_marketplace").update(fee_basis_points=500)
    text = shown(admin_client, page(Checkpoint, "change", checkpoint.pk))
    assert "not split by the present fee (95.00 % / 5.00 %)" in text


def test_units_follow_the_token(admin_client: Client) -> None:
    factories.make_contracts()
    native = factories.make_session(payment_token=factories.NATIVE, price_per_token=10**9)
    factories.add_checkpoint(native)
    unknown = factories.make_session(payment_token="0x" + "99" * 20)
    factories.add_checkpoint(unknown)
    text = shown(admin_client, page(Earning, "changelist"))
    assert "0.000000090000000000 ETH" in text
    assert "180000 base units" in text


def test_public_chain_is_linked_and_the_embedded_one_is_not(admin_client: Client) -> None:
    transaction = factories.make_transaction(chain_id=84532)
    local = factories.make_transaction()
    hashes = (transaction.receipt.attempt.hash, local.receipt.attempt.hash)
    text = admin_client.get(page(Transaction, "changelist")).content.decode()
    assert f"https://sepolia.basescan.org/tx/{hashes[0]}" in text
    assert f"/tx/{hashes[1]}" not in text
    assert f'data-copy="{hashes[1]}"' in text


def test_transaction_is_found_by_any_of_its_hashes(admin_client: Client) -> None:
    wanted, _ = factories.make_transaction(), factories.make_transaction(state=TransactionState.SENT)
    for attempt in Attempt.objects.filter(transaction=wanted):
        answer = admin_client.get(page(Transaction, "changelist"), {"q": attempt.hash.upper().replace("X", "x")})
        assert list(answer.context["cl"].result_list) == [wanted]


def test_contract_page_shows_the_configuration(admin_client: Client) -> None:
    marketplace = factories.make_contracts()[0]
    text = shown(admin_client, page(ContractDeployment, "change", marketplace.pk))
    for expected in (marketplace.address, marketplace.code_hash, "1000 basis points = 10.00 %", "minimum claim tokens"):
        assert expected in text


def test_front_page_adds_up(admin_client: Client) -> None:
    factories.make_world(sessions=2)
    text = shown(admin_client, reverse("admin:index"))
    assert "0.720000 USDC" in text  # four paid claims of 100 tokens at 0.002 USDC, less 10 %
    assert "0.080000 USDC" in text
    assert "An operator should look at these." in text
    assert f"state__exact={CheckpointState.FAILED.value}" in admin_client.get(reverse("admin:index")).content.decode()


def test_front_page_of_an_empty_node_opens(admin_client: Client) -> None:
    text = shown(admin_client, reverse("admin:index"))
    assert "cannot claim" in text


def test_front_page_needs_as_many_queries_for_many_rows(admin_client: Client) -> None:
    factories.make_world()
    with CaptureQueriesContext(connection) as few:
        admin_client.get(reverse("admin:index"))
    factories.make_world(sessions=5)
    with CaptureQueriesContext(connection) as many:
        admin_client.get(reverse("admin:index"))
    assert len(many) == len(few)


def shown(client: Client, address: str) -> str:
    """The text of a page, without its markup."""
    answer = client.get(address)
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))
