"""``manage.py engine``: what it writes for the engine process, and what it says about the running one."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from fabstir_site import environment as environments
from fabstir_site.environment import ConfigurationError
from jobs.engine_config import write_engine_config
from jobs.engine_options import EngineOptions
from jobs.inference.configuration import read_configuration
from nodes.models import ServedModel
from tests.plugins.model import EngineProcess

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def catalog() -> None:
    for number, name in enumerate(["first", "other"]):
        ServedModel.objects.create(
            id=name,
            aliases=[f"{name}-alias"],
            path=f"/models/{name}",
            source="test",
            architecture="llama",
            quantization="int8",
            context_length=2048,
            vocabulary_size=256,
            manifest_sha256="0" * 64,
            is_default=number == 0,
        )


@pytest.fixture
def engine(engine_process: EngineProcess, monkeypatch: pytest.MonkeyPatch, catalog: None) -> EngineProcess:
    """A running engine where the commands look for it."""
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, data_dir=engine_process.directory))
    engine_process.socket = settings.ENVIRONMENT.engine_socket
    engine_process.start({"id": "first", "scripted": {}, "default": True}, {"id": "other", "scripted": {}})
    return engine_process


def said(*words: str) -> str:
    out = StringIO()
    call_command("engine", *words, stdout=out)
    return out.getvalue()


def test_status_is_one_line_a_model(engine: EngineProcess) -> None:
    first, other = said("status").splitlines()
    assert first.startswith("first  loaded pinned  cpu scripted  2 x 8 requests")
    assert "waiting 0 of 64, 0 tokens in 0 batches, 0 refused" in first
    assert other.startswith("other  unloaded  cpu scripted")


def test_models_are_loaded_pinned_and_unloaded_by_id_or_alias(engine: EngineProcess) -> None:
    assert said("load", "other-alias").startswith("other  loaded  cpu")
    assert said("pin", "other").startswith("other  loaded pinned  cpu")
    with pytest.raises(CommandError, match=r"pinned. Unpin it first"):
        said("unload", "other")
    assert said("unpin", "other").startswith("other  loaded  cpu")
    assert said("unload", "other").startswith("other  unloaded  cpu")


def test_what_cannot_be_done_is_one_line(engine: EngineProcess) -> None:
    with pytest.raises(CommandError, match="No model named 'absent'"):
        said("load", "absent")
    engine.kill()
    with pytest.raises(CommandError, match="does not answer"):
        said("status")


def test_the_options_reach_the_engine(catalog: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(
        replicas=3, threads=2, batch_rows=5, gpus=(0, 2), memory_mb=900, idle_seconds=None, pinned=("other-alias",)
    )
    changed = replace(settings.ENVIRONMENT, data_dir=tmp_path, engine_options=options)
    monkeypatch.setattr(settings, "ENVIRONMENT", changed)
    found = read_configuration(write_engine_config())
    assert (found.replicas, found.threads, found.batch_rows, found.device_indexes) == (3, 2, 5, (0, 2))
    assert (found.memory_mb, found.idle_seconds) == (900, None)
    assert [(model.id, model.default, model.pinned) for model in found.models] == [
        ("first", True, False),
        ("other", False, True),
    ]


def test_without_options_the_engine_chooses(catalog: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, data_dir=tmp_path))
    path = write_engine_config()
    written = json.loads(path.read_text())
    assert {written[name] for name in ("replicas", "threads", "batch_rows", "device_indexes", "memory_mb")} == {None}
    assert read_configuration(path).idle_seconds == 3600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REPLICAS", "0"),
        ("THREADS", "many"),
        ("BATCH_ROWS", "-1"),
        ("GPUS", "0,x"),
        ("MEMORY_MB", ""),
        ("PINNED", "a,"),
    ],
)
def test_an_impossible_option_is_named(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"FABSTIR_ENGINE_{name}"):
        environments.load({"FABSTIR_DATA_DIR": str(tmp_path), f"FABSTIR_ENGINE_{name}": value})
