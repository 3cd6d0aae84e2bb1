"""``manage.py models`` serves what passed its check, and says what it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from jobs.management.commands import models as command
from nodes import gguf_conversion
from nodes.model_manifest import WEIGHTS_FILE, read_manifest
from nodes.model_store import ModelStore
from nodes.models import ServedModel
from tests.nodes.local_hub import COMMIT, LocalHub, running
from tests.nodes.small_gguf import Edit, write_gguf
from tests.nodes.test_gguf_architectures import strong_attention

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models_dir(tmp_path: Path, settings: Any) -> Path:
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, data_dir=tmp_path / "data")
    return Path(settings.ENVIRONMENT.models_dir)


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(path, kind="qwen3")
    return path


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("models", *arguments, stdout=out)
    return out.getvalue()


def test_an_added_model_is_served_with_its_check(models_dir: Path, gguf_path: Path) -> None:
    said = run("add", str(gguf_path), "--alias", "tiny")
    row = ServedModel.objects.get()
    manifest = read_manifest(models_dir / "small")
    assert manifest.check is not None
    assert (row.id, row.aliases, row.architecture, row.quantization) == ("small", ["tiny"], "qwen3", "int8")
    assert (row.size_bytes, row.check_tokens, row.source) == (manifest.size, 63, "small.gguf")
    assert row.check_agreement == manifest.check.agreement
    assert row.checked_at is not None
    for line in ("Converting 2 layers (qwen3)", "Converted 2 of 2 layers", "Checking 63 positions", "% agree"):
        assert line in said
    assert re.search(r"small default .*qwen3 int8 .*small\.gguf .*63 tokens, \d+% agree", run("list"))


def test_the_built_in_model_gets_the_names_that_a_start_would_give_it(
    models_dir: Path, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packaged(store: ModelStore, *_: Any, **__: Any) -> Any:
        return store.add(gguf_path, model_id="small")

    monkeypatch.setattr(ModelStore, "ensure_packaged", packaged)
    run("add", "default")
    assert ServedModel.objects.get().aliases == ["default", "tiny-vicuna", "tiny-vicuna-1b"]
    monkeypatch.setattr(ModelStore, "ensure_packaged", lambda store, *_, **__: store.manifest("small"))
    run("add", "default", "--alias", "mine")
    assert ServedModel.objects.get().aliases == ["mine"]


def test_a_taken_name_is_refused_before_anything_is_stored(models_dir: Path, gguf_path: Path) -> None:
    run("add", str(gguf_path), "--alias", "tiny")
    with pytest.raises(CommandError, match="'tiny' already names the model small"):
        run("add", str(gguf_path), "--id", "other", "--alias", "tiny")
    assert not (models_dir / "other").exists()
    assert run("add", str(gguf_path), "--id", "other", "--alias", "tiny-2").count("Serving other") == 1


def test_a_model_that_fails_its_check_is_not_served(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_conversion, "_halves", lambda rows, *, heads: rows)
    edit: Edit = lambda metadata, tensors: tensors.update(strong_attention(tensors))  # noqa: E731
    write_gguf(tmp_path / "wrong.gguf", edit)
    with pytest.raises(CommandError, match=r"disagrees with its reference.*It is not served") as caught:
        run("add", str(tmp_path / "wrong.gguf"))
    assert "\n" not in str(caught.value)
    assert not ServedModel.objects.exists()
    assert [path.name for path in models_dir.iterdir()] == [".lock"]


def test_a_converted_directory_is_not_served_and_can_be_added_elsewhere(
    models_dir: Path, gguf_path: Path, tmp_path: Path
) -> None:
    said = run("convert", str(gguf_path), str(tmp_path / "carried"), "--quantization", "float32")
    assert "it is not served" in said
    assert not ServedModel.objects.exists()
    assert read_manifest(tmp_path / "carried").quantization == "float32"
    assert run("add", str(tmp_path / "carried"), "--id", "moved")
    row = ServedModel.objects.get()
    assert (row.id, row.architecture, row.source) == ("moved", "qwen3", "small.gguf")
    assert row.check_method == "float32 against a float32 numpy pass"


def test_check_again_writes_down_what_it_finds(models_dir: Path, gguf_path: Path) -> None:
    run("add", str(gguf_path))
    ServedModel.objects.update(checked_at=None, check_method="", check_tokens=0)
    assert "63 tokens" in run("check")
    assert ServedModel.objects.get().check_tokens == 63
    weights = models_dir / "small" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CommandError, match="1 models failed"):
        run("check", "small")
    row = ServedModel.objects.get()
    assert "damaged" in row.check_error
    assert (row.check_method, row.check_agreement) == ("", None)
    assert "check: failed" in run("list")


def test_a_model_without_a_chat_template_can_be_given_one(models_dir: Path, tmp_path: Path) -> None:
    path, template = tmp_path / "plain.gguf", tmp_path / "chat.jinja"
    write_gguf(path, lambda metadata, tensors: metadata.pop("tokenizer.chat_template") and None)
    with pytest.raises(CommandError, match="--chat-template FILE"):
        run("add", str(path))
    with pytest.raises(CommandError, match="Check --chat-template"):
        run("add", str(path), "--chat-template", str(template))
    template.write_text("{{ messages[0].content }}")
    run("add", str(path), "--chat-template", str(template))
    assert (models_dir / "plain" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_a_model_of_a_hub_is_served_with_its_commit(
    models_dir: Path, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = command.download
    with running(LocalHub("org/small", {"small.gguf": gguf_path.read_bytes()})) as hub:
        monkeypatch.setattr(
            command, "download", lambda model, **options: original(model, endpoint=hub.endpoint, **options)
        )
        said = run("add", f"org/small@{COMMIT}:small.gguf", "--id", "hub-model")
    row = ServedModel.objects.get()
    assert (row.id, row.source, row.revision) == ("hub-model", "org/small:small.gguf", COMMIT)
    assert "Downloading 1 of 1: small.gguf" in said


def test_a_source_that_is_nothing_is_one_clear_line(models_dir: Path) -> None:
    with pytest.raises(CommandError, match=r"does not exist\. Check the path"):
        run("add", "/nowhere/at-all.gguf")


_KILLED = """
import os, signal, sys
from pathlib import Path
from nodes.model_store import ModelStore
def die(line):
    if sys.argv[3] in line:
        os.kill(os.getpid(), signal.SIGKILL)
ModelStore(Path(sys.argv[1])).add(Path(sys.argv[2]), model_id="small", progress=die)
"""


@pytest.mark.parametrize("moment", ["Converting", "Converted 1", "Writing", "Checking"])
def test_a_conversion_that_is_killed_leaves_nothing_to_serve(tmp_path: Path, gguf_path: Path, moment: str) -> None:
    store = ModelStore(tmp_path / "models")
    arguments = [sys.executable, "-c", _KILLED, str(store.directory), str(gguf_path), moment]
    killed = subprocess.run(arguments, cwd=ROOT, env=os.environ, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.manifests() == ()
    assert store.add(gguf_path, model_id="small") == store.manifest("small")
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "small"]
