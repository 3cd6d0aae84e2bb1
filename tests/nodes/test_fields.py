"""Chain values survive the database exactly, on whichever engine DATABASE_URL names."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.core import serializers
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F, Max, Q
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobs.models import Session
from nodes.fields import MAX_UINT256, AddressField, Hash32Field, Uint256Field
from nodes.models import Host

pytestmark = pytest.mark.django_db

AMOUNTS = [0, 1, 10**15 + 1, 2**53 + 1, 10**18 + 1, 2**63 - 1, 2**63, 2**128, MAX_UINT256 - 1, MAX_UINT256]


class Amounts(models.Model):
    """A table of its own, with a CHECK between two amounts."""

    low = Uint256Field()
    high = Uint256Field(null=True)

    class Meta:
        app_label = "nodes"
        managed = False
        constraints = [models.CheckConstraint(condition=Q(low__lte=F("high")), name="low_is_at_most_high")]

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@pytest.fixture(scope="module", autouse=True)
def _table(django_db_setup: None, django_db_blocker: Any) -> Any:
    with django_db_blocker.unblock():
        with connection.schema_editor() as editor:
            editor.create_model(Amounts)
        yield
        with connection.schema_editor() as editor:
            editor.delete_model(Amounts)
    apps.all_models["nodes"].pop("amounts")
    apps.clear_cache()


def _session(deposit: Any) -> Session:
    return Session.objects.create(deposit=deposit, last_activity_at=timezone.now())


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_uint256_comes_back_exactly(amount: int) -> None:
    row = Session.objects.get(pk=_session(amount).pk)
    assert row.deposit == amount
    assert isinstance(row.deposit, int)
    assert Session.objects.get(deposit=amount) == row


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(amount=st.integers(0, MAX_UINT256))
def test_any_uint256_comes_back_exactly(amount: int) -> None:
    assert Amounts.objects.get(pk=Amounts.objects.create(low=0, high=amount).pk).high == amount


def test_amounts_are_ordered_as_numbers() -> None:
    for amount in [*AMOUNTS[5:], *AMOUNTS[:5]]:
        _session(amount)
    assert list(Session.objects.order_by("deposit").values_list("deposit", flat=True)) == AMOUNTS
    assert Session.objects.aggregate(highest=Max("deposit"))["highest"] == MAX_UINT256


def test_amounts_are_compared_as_numbers() -> None:
    for amount in AMOUNTS:
        _session(amount)
    for bound in AMOUNTS:
        assert Session.objects.filter(deposit__gt=bound).count() == sum(amount > bound for amount in AMOUNTS)
        assert Session.objects.filter(deposit__lte=bound).count() == sum(amount <= bound for amount in AMOUNTS)
    assert Session.objects.filter(deposit__in=[9, 10**15 + 1]).count() == 1


def test_a_check_constraint_compares_amounts_as_numbers() -> None:
    Amounts.objects.create(low=9, high=10**20)
    Amounts.objects.create(low=MAX_UINT256, high=MAX_UINT256)
    with pytest.raises(IntegrityError, match="low_is_at_most_high"), transaction.atomic():
        Amounts.objects.create(low=10**20, high=9)
    with pytest.raises(IntegrityError, match="low_is_at_most_high"), transaction.atomic():
        Amounts.objects.filter(high=10**20).update(low=10**20 + 1)


@pytest.mark.parametrize("value", [-1, MAX_UINT256 + 1])
def test_a_number_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="uint256"), transaction.atomic():
        _session(value)


@pytest.mark.parametrize("value", [1.0, 1.5, True, False, "1.5", "-1", "0x10", "ten", b"1", [1]])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises((ValidationError, ValueError)), transaction.atomic():
        _session(value)
    assert not Session.objects.exists()


def test_digits_in_text_are_a_number_and_empty_stays_empty() -> None:
    assert Session.objects.get(pk=_session(str(2**200)).pk).deposit == 2**200
    assert Amounts.objects.get(pk=Amounts.objects.create(low=1).pk).high is None
    assert Amounts.objects.filter(high__isnull=True).exists()


def test_a_dump_holds_every_digit() -> None:
    dump = serializers.serialize("json", [_session(MAX_UINT256)])
    assert str(MAX_UINT256) in dump
    (row,) = serializers.deserialize("json", dump)
    assert row.object.deposit == MAX_UINT256


def test_addresses_are_stored_and_found_in_lower_case() -> None:
    mixed = "0x" + "aBcD" * 10
    Host.objects.create(chain_id=1, address=mixed)
    assert Host.objects.get(address=mixed.upper().replace("0X", "0x")).address == mixed.lower()


@pytest.mark.parametrize(
    "value", ["0x12", "ab" * 20, "0x" + "g" * 40, "0x" + "a" * 41, "0x" + "a" * 64, 5, b"\x01" * 20]
)
def test_what_is_no_address_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="40 hex digits"):
        Host.objects.create(chain_id=1, address=value)


def test_hashes_have_64_digits_in_lower_case() -> None:
    field = Hash32Field(name="hash")
    assert field.get_prep_value("0x" + "AB" * 32) == "0x" + "ab" * 32
    assert field.get_prep_value("") == ""
    with pytest.raises(ValueError, match="64 hex digits"):
        field.get_prep_value("0x" + "a" * 40)


@pytest.mark.parametrize("field", [Uint256Field(null=True), AddressField(blank=True), Hash32Field()])
def test_a_field_can_be_written_into_a_migration(field: models.Field[Any, Any]) -> None:
    _, path, args, kwargs = field.deconstruct()
    assert path.startswith("nodes.fields.")
    assert type(field)(*args, **kwargs).deconstruct()[1:] == field.deconstruct()[1:]
