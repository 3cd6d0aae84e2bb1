"""Served models in the admin: what the engine does with them, and what may be asked of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from fabstir_site import environment
from jobs.inference.client import EngineClient
from nodes.model_manifest import MANIFEST_FILE
from nodes.model_store import ModelStore
from tests import factories
from tests.nodes.small_gguf import write_gguf
from tests.plugins.model import EngineProcess, request

pytestmark = pytest.mark.django_db
LIST = "admin:nodes_servedmodel_changelist"


@pytest.fixture
def away(engine_process: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    """An engine that is not started, where the node looks for it; its models in the catalog."""
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, data_dir=engine_process.directory))
    engine_process.socket = settings.ENVIRONMENT.engine_socket
    engine_process.socket.parent.mkdir(exist_ok=True)
    factories.make_served_model("first")
    factories.make_served_model("other", aliases=[], is_default=False)
    return engine_process


@pytest.fixture
def engine(away: EngineProcess) -> EngineProcess:
    held = {"hold_after": 1, "tokens": None}
    away.start({"id": "first", "scripted": {}, "default": True}, {"id": "other", "scripted": held})
    return away


def act(client: Client, action: str, *models: str) -> str:
    """The page that follows an action."""
    answer = client.post(reverse(LIST), {"action": action, "_selected_action": models}, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def state_of(engine: EngineProcess, model: str) -> tuple[str, bool]:
    async def ask() -> tuple[str, bool]:
        client = EngineClient(engine.socket)
        try:
            return next((found.state, found.pinned) for found in await client.models() if found.model == model)
        finally:
            await client.close()

    return asyncio.run(ask())


def audited(model: str) -> list[str]:
    return list(LogEntry.objects.filter(object_id=model).order_by("id").values_list("change_message", flat=True))


def test_the_list_shows_what_is_in_the_engine(admin_client: Client, engine: EngineProcess) -> None:
    page = admin_client.get(reverse(LIST)).content.decode()
    for text in ("loaded", "pinned", "cpu, scripted, 2 x 8 requests", "0 MB", "unloaded"):
        assert text in page
    assert "away" not in page


def test_the_page_of_a_model_shows_its_work(admin_client: Client, engine: EngineProcess) -> None:
    page = admin_client.get(reverse("admin:nodes_servedmodel_change", args=["first"])).content.decode()
    for text in ("In the engine", "pinned", "cpu, scripted, 2 x 8 requests", "0 of 64 wait"):
        assert text in page


def test_models_are_loaded_pinned_unpinned_and_unloaded(admin_client: Client, engine: EngineProcess) -> None:
    assert "other: It is loaded and not pinned: 0 MB, cpu, scripted" in act(admin_client, "load_now", "other")
    assert state_of(engine, "other") == ("loaded", False)
    assert "other: It is loaded and pinned" in act(admin_client, "pin_now", "other")
    assert state_of(engine, "other") == ("loaded", True)
    refused = act(admin_client, "unload_now", "other")
    assert "other: Not done: The model other is pinned. Unpin it first." in refused
    assert "other: It is loaded and not pinned" in act(admin_client, "unpin_now", "other")
    assert "other: It is not in memory." in act(admin_client, "unload_now", "other")
    assert state_of(engine, "other") == ("unloaded", False)
    written = audited("other")
    assert [line.split(" it. ")[0] for line in written] == [
        f"Asked the engine to {wanted}" for wanted in ("load", "pin", "unload", "unpin", "unload")
    ]
    assert "Not done: The model other is pinned" in written[2]
    assert LogEntry.objects.values_list("user__username", flat=True).distinct().get() == "admin"


def test_each_of_several_models_has_its_own_answer(admin_client: Client, engine: EngineProcess) -> None:
    factories.make_served_model("off", aliases=[], is_default=False, enabled=False)
    page = act(admin_client, "load_now", "first", "other", "off")
    assert "first: It is loaded and pinned" in page
    assert "other: It is loaded and not pinned" in page
    assert "off: Not done: The model off is not served. Served: first, other." in page
    assert LogEntry.objects.count() == 3


def test_a_busy_model_is_not_unloaded(admin_client: Client, engine: EngineProcess) -> None:
    client = EngineClient(engine.socket)
    with asyncio.Runner() as runner:
        stream = client.generate(request(model="other"))
        runner.run(anext(stream))  # type: ignore[arg-type]
        assert "Not done: The model other is busy. Try again" in act(admin_client, "unload_now", "other")
        assert state_of(engine, "other") == ("loaded", False)
        runner.run(stream.aclose())
        runner.run(client.close())


def test_a_model_that_does_not_fit_says_what_to_do(admin_client: Client, away: EngineProcess, tmp_path: Path) -> None:
    write_gguf(tmp_path / "large.gguf", kind="qwen3")
    ModelStore(tmp_path / "models").add(tmp_path / "large.gguf", model_id="other")
    manifest = tmp_path / "models" / "other" / MANIFEST_FILE
    document = json.loads(manifest.read_text())
    document["files"]["model.bin"]["size"] = 900 * 10**6
    manifest.write_text(json.dumps(document))
    first = {"id": "first", "scripted": {}, "default": True}
    away.start(first, {"id": "other", "path": str(manifest.parent)}, memory_mb=100)
    page = act(admin_client, "load_now", "other")
    assert "Not done: Cannot load other: it takes 900 MB" in page
    assert "FABSTIR_ENGINE_MEMORY_MB" in page
    assert "failed" in page
    page = admin_client.get(reverse("admin:nodes_servedmodel_change", args=["other"])).content.decode()
    assert "Cannot load other: it takes 900 MB" in page


def test_an_engine_that_is_away_is_said_to_be(admin_client: Client, away: EngineProcess) -> None:
    for address in (reverse(LIST), reverse("admin:nodes_servedmodel_change", args=["first"])):
        page = admin_client.get(address).content.decode()
        assert "The engine is away: The engine does not answer" in page
        assert "engine is away" in page
    for action in ("load_now", "unload_now", "pin_now", "unpin_now"):
        assert "first: Not done: The engine does not answer" in act(admin_client, action, "first")
    assert len(audited("first")) == 4


@pytest.fixture
def deaf(away: EngineProcess) -> Iterator[None]:
    """An engine that takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(away.socket))
        listening.listen()
        yield


@pytest.mark.usefixtures("deaf")
def test_an_engine_that_hangs_holds_no_page_up(admin_client: Client) -> None:
    assert "did not answer within 2 s" in admin_client.get(reverse(LIST)).content.decode()
    assert "first: Not done: The engine did not answer within" in act(admin_client, "load_now", "first")
    sent = {"aliases": "[]", "enabled": "on"}
    address = reverse("admin:nodes_servedmodel_change", args=["first"])
    page = admin_client.post(address, sent, follow=True).content.decode()
    assert "The engine learns of it when it starts. The engine did not answer within 2 s." in page


def test_who_may_only_look_asks_nothing_of_the_engine(
    client: Client, engine: EngineProcess, django_user_model: Any
) -> None:
    viewer = django_user_model.objects.create_user("viewer", password="x" * 12, is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_servedmodel"))
    client.force_login(viewer)
    page = client.get(reverse(LIST)).content.decode()
    assert "cpu, scripted" in page
    assert "Load into the engine" not in page
    act(client, "load_now", "other")
    assert state_of(engine, "other") == ("unloaded", False)
    assert not LogEntry.objects.exists()
    viewer.user_permissions.add(Permission.objects.get(codename="change_servedmodel"))
    act(client, "load_now", "other")
    assert state_of(engine, "other") == ("loaded", False)


def test_a_request_forged_by_another_site_does_nothing(admin_user: Any, engine: EngineProcess) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    form = {"action": "load_now", "_selected_action": ["other"]}
    assert client.post(reverse(LIST), form).status_code == 403
    assert state_of(engine, "other") == ("unloaded", False)


def test_an_inference_server_elsewhere_is_not_steered_from_here(
    admin_client: Client, away: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"FABSTIR_ENGINE_KIND": "openai_http", "FABSTIR_ENGINE_URL": "http://127.0.0.1:9/v1"}
    elsewhere = environment.load({"FABSTIR_DATA_DIR": str(away.directory), **variables})
    monkeypatch.setattr(settings, "ENVIRONMENT", elsewhere)
    page = admin_client.get(reverse(LIST)).content.decode()
    assert "engine is away" in page
    assert "Load into the engine" not in page
    act(admin_client, "load_now", "first")
    assert not LogEntry.objects.exists()
