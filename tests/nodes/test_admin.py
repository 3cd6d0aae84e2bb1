"""Admin pages of the host and its models: what may be changed, and what may not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from nodes import admin, catalog, tasks
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


def test_the_page_shows_where_a_model_is_from_and_how_it_was_checked(admin_client: Client) -> None:
    fields = {"check_method": "int8 against a float32 numpy pass", "check_tokens": 63, "checked_at": timezone.now()}
    figures = {"check_agreement": 0.9, "check_perplexity_ratio": 1.02, "size_bytes": 143_000_000}
    model = factories.make_served_model(revision="c0" * 20, source="org/small", **fields, **figures)
    page = admin_client.get(address(model)).content.decode()
    for text in ("org/small", "c0" * 20, "143 MB", "63 tokens, 90% agree, perplexity ratio 1.020", "passed"):
        assert text in page
    catalog.record_check(model.pk, check=None, error="it disagrees")
    page = admin_client.get(address(model)).content.decode()
    assert "failed: it disagrees" in page
    assert "failed" in admin_client.get(reverse("admin:nodes_servedmodel_changelist")).content.decode()


def test_check_again_is_handed_to_a_worker(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(admin.check_model, "apply_async", lambda **options: sent.append(options))
    model = factories.make_served_model()
    form = {"action": "check_again", "_selected_action": [model.pk]}
    answer = admin_client.post(reverse("admin:nodes_servedmodel_changelist"), form, follow=True)
    assert sent == [{"args": (model.pk,), "queue": "default"}]
    assert "1 models are being checked" in answer.content.decode()


@pytest.mark.parametrize(
    "fields",
    [
        {"check_agreement": 1.5},
        {"check_perplexity_ratio": 0.0},
        {"check_method": "x", "check_tokens": 5},
        {"check_error": "x"},
    ],
)
def test_the_database_refuses_a_check_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        factories.make_served_model(**fields)


def test_a_check_that_was_killed_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    model = factories.make_served_model()
    program = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    original = subprocess.run
    monkeypatch.setattr(tasks.subprocess, "run", lambda command, **options: original(program, **options))
    tasks.check_model(model.pk)
    model.refresh_from_db()
    assert "killed, probably for memory" in model.check_error
