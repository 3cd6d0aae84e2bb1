"""What comes from a hub is one commit, complete, and data only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes import model_staging
from nodes.hub_download import HubModel, HubUnavailable, download, forget, parse_hub_name
from nodes.model_manifest import CorruptModel
from nodes.model_staging import DiskFull
from nodes.model_store import ModelStore, Origin
from tests.nodes.local_hub import COMMIT, LocalHub, running
from tests.nodes.small_gguf import write_gguf

REPOSITORY = "someone/small-model"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    write_gguf(tmp_path / "small.gguf")
    weights = bytes(range(256)) * 100_000  # the client writes pieces of 10 MB
    files = {
        "README.md": b"# a model",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "modeling_small.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "model.safetensors": weights,
        "onnx/model.safetensors": b"elsewhere",
        "small.gguf": (tmp_path / "small.gguf").read_bytes(),
    }
    with running(LocalHub(REPOSITORY, files)) as started:
        yield started


def named(text: str) -> HubModel:
    model = parse_hub_name(text)
    assert model is not None
    return model


def fetch(hub: LocalHub, store: Path, text: str = REPOSITORY) -> tuple[Path, list[str]]:
    lines: list[str] = []
    fetched = download(named(text), store=store, progress=lines.append, endpoint=hub.endpoint)
    assert fetched.commit == COMMIT
    return fetched.path, lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", "main", None, "name")),
        (f"org/na.me-1@{COMMIT}", ("org/na.me-1", COMMIT, None, "na.me-1")),
        ("org/name@v1.0:x.Q4_K_M.gguf", ("org/name", "v1.0", "x.Q4_K_M.gguf", "x.Q4_K_M")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1", None, "name")),
    ],
)
def test_a_name_says_repository_revision_and_file(text: str, expected: tuple[str, str, str | None, str]) -> None:
    model = named(text)
    assert (model.repository, model.revision, model.file, model.name) == expected


@pytest.mark.parametrize(
    "text", ["name", "/org/name", "./org/name", "../x", "a/b/c", "org/name@", "org/name:x.bin", ""]
)
def test_other_texts_are_no_names(text: str) -> None:
    assert parse_hub_name(text) is None


def test_only_what_is_needed_is_fetched(hub: LocalHub, tmp_path: Path) -> None:
    path, lines = fetch(hub, tmp_path / "models")
    kept = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    assert kept == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert set(hub.fetched()) == set(kept)
    assert lines[0] == f"{REPOSITORY}@main is commit {COMMIT}"
    assert any("model.safetensors (25.6 MB)" in line for line in lines)


def test_an_interrupted_download_goes_on_where_it_stopped(hub: LocalHub, tmp_path: Path) -> None:
    hub.cut_after = 15_000_000
    store = tmp_path / "models"
    try:
        path, _ = fetch(hub, store)
    except HubUnavailable as error:
        assert "run the command again to go on" in str(error)
        path, _ = fetch(hub, store)
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    resumed = [wanted for method, name, wanted in hub.requests if method == "GET" and "model.safetensors" in name]
    assert resumed[0] in ("", "bytes=0-")
    assert any(int(wanted.removeprefix("bytes=").partition("-")[0] or 0) > 0 for wanted in resumed[1:])


def test_what_is_there_is_not_fetched_again(hub: LocalHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path / "models")
    before = len(hub.fetched())
    fetch(hub, tmp_path / "models", f"{REPOSITORY}@{COMMIT}")
    assert len(hub.fetched()) == before


def test_a_file_that_is_not_what_the_hub_says_is_deleted(hub: LocalHub, tmp_path: Path) -> None:
    hub.lie_about = "model.safetensors"
    with pytest.raises(CorruptModel, match="SHA-256 differs"):
        fetch(hub, tmp_path / "models")
    assert not list((tmp_path / "models").rglob("model.safetensors"))


def test_pickled_weights_are_never_fetched(hub: LocalHub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(HubUnavailable, match="pickled weights are never fetched"):
        fetch(hub, tmp_path / "models")
    assert hub.fetched() == []


@pytest.mark.parametrize("text", [f"{REPOSITORY}@nowhere", "someone/else"])
def test_what_the_hub_has_not_is_one_clear_line(hub: LocalHub, tmp_path: Path, text: str) -> None:
    with pytest.raises(HubUnavailable, match="could not be fetched") as caught:
        fetch(hub, tmp_path / "models", text)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_away_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(HubUnavailable, match="Check the name, the network"):
        download(named(REPOSITORY), store=tmp_path, progress=print, endpoint="http://127.0.0.1:9")


def test_nothing_is_fetched_without_room(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskFull, match="needs 25 MB"):
        fetch(hub, tmp_path / "models")
    assert hub.fetched() == []


def test_a_gguf_of_a_hub_is_converted_and_its_commit_recorded(hub: LocalHub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    model = named(f"{REPOSITORY}@main:small.gguf")
    fetched = download(model, store=store.directory, progress=print, endpoint=hub.endpoint)
    origin = Origin(source=f"{model.repository}:{model.file}", revision=fetched.commit)
    manifest = store.add(fetched.path, model_id=model.name, origin=origin)
    forget(fetched)
    assert (manifest.source, manifest.revision) == (f"{REPOSITORY}:small.gguf", COMMIT)
    assert store.manifests() == (manifest,)
    assert hub.fetched() == ["small.gguf"]
    assert not list((store.directory / ".downloads").iterdir())
