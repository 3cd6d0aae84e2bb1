"""``manage.py models`` and the admin beside a running engine with real files: nothing is restarted."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from jobs import engine_control
from jobs.inference.client import EngineClient
from jobs.inference.engine import EngineUnavailable, ModelNotLoaded, TokenChunk
from nodes.model_manifest import WEIGHTS_FILE
from tests.nodes.small_gguf import write_gguf
from tests.plugins.model import EngineProcess, request

pytestmark = pytest.mark.django_db


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Short, for the socket's sake.
    directory = Path(tempfile.mkdtemp(prefix="fabstir-models-"))
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, data_dir=directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def engine(data_dir: Path, tmp_path: Path) -> Iterator[EngineProcess]:
    """A node's own engine, serving one small model that was added before it started."""
    assert "learns of it when it starts" in add(tmp_path, "first")
    process = EngineProcess(settings.ENVIRONMENT.run_dir)
    assert process.socket == settings.ENVIRONMENT.engine_socket
    process.start({"id": "first", "path": str(settings.ENVIRONMENT.models_dir / "first"), "default": True})
    yield process
    process.close()


def said(*words: str) -> str:
    out = StringIO()
    call_command("models", *words, stdout=out)
    return out.getvalue()


def add(directory: Path, name: str, *options: str) -> str:
    write_gguf(directory / f"{name}.gguf", kind="qwen3")
    return said("add", str(directory / f"{name}.gguf"), *options)


def ask(question: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(question)


async def generated(model: str) -> list[TokenChunk]:
    client = EngineClient(settings.ENVIRONMENT.engine_socket)
    try:
        return [chunk async for chunk in client.generate(request("the", model=model, max_tokens=8))]
    finally:
        await client.close()


async def served() -> dict[str, str]:
    client = EngineClient(settings.ENVIRONMENT.engine_socket)
    try:
        return {model.model: model.state for model in await client.models()}
    finally:
        await client.close()


def test_a_model_is_added_used_and_removed_without_a_restart(engine: EngineProcess, tmp_path: Path) -> None:
    assert ask(served()) == {"first": "loaded"}
    assert "The running engine knows" in add(tmp_path, "second", "--alias", "other")
    assert ask(served()) == {"first": "loaded", "second": "unloaded"}
    chunks = ask(generated("second"))
    assert chunks[-1].finish_reason in ("stop", "length")
    assert chunks[-1].prompt_tokens > 0
    assert ask(served()) == {"first": "loaded", "second": "loaded"}
    assert "Removed second. The running engine knows" in said("remove", "second")
    assert ask(served()) == {"first": "loaded"}
    with pytest.raises(ModelNotLoaded, match="Served: first"):
        ask(generated("second"))
    assert ask(generated("first"))[-1].finish_reason in ("stop", "length")


def test_files_are_verified_when_an_added_model_is_loaded(engine: EngineProcess, tmp_path: Path) -> None:
    add(tmp_path, "second")
    weights = settings.ENVIRONMENT.models_dir / "second" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(EngineUnavailable, match=r"damaged: model.bin .*SHA-256 differs"):
        ask(generated("second"))
    assert ask(served()) == {"first": "loaded", "second": "failed"}


def test_a_model_added_again_with_other_files_replaces_the_one_in_memory(engine: EngineProcess, tmp_path: Path) -> None:
    add(tmp_path, "second")
    ask(generated("second"))
    said("remove", "second")
    add(tmp_path, "second", "--quantization", "float32")
    assert ask(served()) == {"first": "loaded", "second": "unloaded"}
    assert ask(generated("second"))[-1].finish_reason in ("stop", "length")


def test_a_new_default_is_in_memory_and_survives_the_former(engine: EngineProcess, tmp_path: Path) -> None:
    add(tmp_path, "second", "--default")
    assert next(iter(ask(served()))) == "second"
    assert "Removed first" in said("remove", "first")
    ask(generated("second"))
    assert ask(served()) == {"second": "loaded"}


def test_a_model_that_is_switched_off_in_the_admin_is_let_go_and_comes_back(
    engine: EngineProcess, tmp_path: Path, admin_client: Client
) -> None:
    add(tmp_path, "second")
    ask(generated("second"))
    address = reverse("admin:nodes_servedmodel_change", args=["second"])
    page = admin_client.post(address, {"aliases": "[]"}, follow=True).content.decode()
    assert "The running engine knows" in page
    assert ask(served()) == {"first": "loaded"}
    admin_client.post(address, {"aliases": "[]", "enabled": "on"})
    assert ask(served()) == {"first": "loaded", "second": "unloaded"}


def test_a_load_that_takes_long_goes_on_without_who_asked(engine: EngineProcess, tmp_path: Path) -> None:
    add(tmp_path, "second")
    (outcome,) = engine_control.change("pin", ["second"], seconds=0.0)
    assert (outcome.unfinished, outcome.problem) == (True, "")
    while not (seen := engine_control.look()).models["second"].pinned:
        assert seen.models["second"].state in ("unloaded", "loading", "loaded")
    assert seen.models["second"].state == "loaded"


def test_an_engine_that_starts_after_a_change_reads_it(engine: EngineProcess, tmp_path: Path) -> None:
    engine.kill()
    assert "learns of it when it starts" in add(tmp_path, "second", "--default")
    assert "does not answer" in said("remove", "first")
    written = settings.ENVIRONMENT.engine_config_file.read_text()
    assert '"second"' in written
    assert '"first"' not in written
