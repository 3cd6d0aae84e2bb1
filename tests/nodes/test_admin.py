"""Admin pages of the host and its models: what may be changed, and what may not."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from nodes.models import ServedModel
from tests import factories

pytestmark = pytest.mark.django_db


def address(model: ServedModel, kind: str = "change") -> str:
    return reverse(f"admin:nodes_servedmodel_{kind}", args=[model.pk])


def test_names_and_switches_can_be_edited_and_nothing_else(admin_client: Client) -> None:
    model = factories.make_served_model()
    sent = {"aliases": '["other"]', "enabled": "on", "path": "/elsewhere", "context_length": "1"}
    assert admin_client.post(address(model), sent).status_code == 302
    model.refresh_from_db()
    assert (model.aliases, model.path, model.context_length) == (["other"], "/models/small-model", 2048)


@pytest.mark.parametrize("aliases", ['{"a": 1}', "[1]", '[""]', "no json", '["second"]', '["taken"]'])
def test_unusable_names_are_refused(admin_client: Client, aliases: str) -> None:
    model = factories.make_served_model()
    factories.make_served_model("second", aliases=["taken"], is_default=False)
    answer = admin_client.post(address(model), {"aliases": aliases, "enabled": "on"})
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors["aliases"]


def test_default_model_cannot_be_disabled(admin_client: Client) -> None:
    model = factories.make_served_model()
    answer = admin_client.post(address(model), {"aliases": "[]"})
    assert answer.status_code == 200
    model.refresh_from_db()
    assert model.enabled


def test_another_model_becomes_the_default(admin_client: Client) -> None:
    first = factories.make_served_model()
    second = factories.make_served_model("second", aliases=[], is_default=False)
    sent = {"aliases": "[]", "enabled": "on", "make_default": "on"}
    assert admin_client.post(address(second), sent).status_code == 302
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.is_default, second.is_default) == (False, True)


def test_models_are_neither_added_nor_deleted_here(admin_client: Client) -> None:
    model = factories.make_served_model()
    assert admin_client.get(reverse("admin:nodes_servedmodel_add")).status_code == 403
    assert admin_client.post(address(model, "delete"), {"post": "yes"}).status_code == 403
    assert ServedModel.objects.count() == 1
