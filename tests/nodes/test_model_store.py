"""The store holds whole, verified models or nothing, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from nodes import model_staging
from nodes import model_store as module
from nodes.converted_model import UnsupportedModel
from nodes.model_manifest import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    CorruptModel,
    InvalidModelId,
    ModelManifest,
    digest_file,
    read_manifest,
)
from nodes.model_staging import DiskFull, ModelExists
from nodes.model_store import (
    DEFAULT_MODEL,
    DownloadFailed,
    HashMismatch,
    ModelMissing,
    ModelStore,
    Origin,
    PackagedModel,
)
from nodes.model_vocabulary import VocabularyMismatch
from tests.nodes.small_gguf import write_gguf
from tests.nodes.test_gguf_conversion import set_field


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def packaged(tmp_path: Path, gguf_path: Path) -> tuple[PackagedModel, Path]:
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_path, "small/small.gguf")
    sha256 = digest_file(wheel).sha256
    model = PackagedModel(id="small", requirement="small==1.0", sha256=sha256, member="small/small.gguf", room=1)
    return model, wheel


def nothing_is_left(store: ModelStore) -> bool:
    return [path.name for path in store.directory.iterdir()] == [".lock"]


def test_the_default_model_is_complete(model_store: ModelStore, default_model: ModelManifest) -> None:
    assert default_model.id == DEFAULT_MODEL.id == "smollm2-135m-instruct"
    assert (default_model.architecture, default_model.quantization) == ("llama", "int8")
    assert (default_model.context_length, default_model.vocabulary_size) == (8192, 49152)
    assert default_model.end_token_ids == (0, 2)
    assert model_store.verify(DEFAULT_MODEL.id) == ()
    assert default_model in model_store.manifests()


def test_a_gguf_is_added_and_removed(store: ModelStore, gguf_path: Path) -> None:
    lines: list[str] = []
    manifest = store.add(gguf_path, model_id="small", progress=lines.append)
    assert store.manifests() == (manifest,)
    assert manifest == read_manifest(store.path("small"))
    assert manifest.source == "small.gguf"
    assert manifest.size == sum(
        path.stat().st_size for path in store.path("small").iterdir() if path.name != MANIFEST_FILE
    )
    assert lines
    store.remove("small")
    assert nothing_is_left(store)


def test_a_packaged_model_is_converted_once(
    store: ModelStore, packaged: tuple[PackagedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, wheel = packaged
    first = store.ensure_packaged(model, wheel=wheel)
    monkeypatch.setattr(module, "convert_gguf", None)
    assert store.ensure_packaged(model, wheel=wheel) == first


def test_a_changed_package_is_not_opened(store: ModelStore, packaged: tuple[PackagedModel, Path]) -> None:
    model, wheel = packaged
    with wheel.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(HashMismatch, match=model.sha256):
        store.ensure_packaged(model, wheel=wheel)
    assert nothing_is_left(store)


def test_a_failed_download_is_one_clear_line(
    store: ModelStore, packaged: tuple[PackagedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadFailed, match=r"could not download small==1\.0 \(ERROR.*Check the network") as caught:
        store.ensure_packaged(packaged[0])
    assert "\n" not in str(caught.value)
    assert nothing_is_left(store)


def test_a_disk_without_room_is_refused_at_once(
    store: ModelStore, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskFull, match="Free some space"):
        store.add(gguf_path, model_id="small")
    assert nothing_is_left(store)


def test_a_disk_that_fills_up_leaves_nothing(
    store: ModelStore, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, target: Path, **options: object) -> None:
        (target / WEIGHTS_FILE).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "convert_gguf", fill)
    with pytest.raises(DiskFull, match="is full"):
        store.add(gguf_path, model_id="small")
    assert nothing_is_left(store)
    assert store.manifests() == ()


def test_what_a_crash_left_is_invisible_and_deleted_later(store: ModelStore, gguf_path: Path) -> None:
    rest = store.directory / ".staging-crashed" / "model"
    rest.mkdir(parents=True)
    (rest / MANIFEST_FILE).write_text("{}")
    assert store.manifests() == ()
    store.add(gguf_path, model_id="small")
    assert not rest.exists()


def test_a_refused_model_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    write_gguf(path, set_field("general.architecture", "gemma"))
    with pytest.raises(UnsupportedModel):
        store.add(path, model_id="small")
    assert nothing_is_left(store)


def test_an_id_is_used_once(store: ModelStore, gguf_path: Path) -> None:
    store.add(gguf_path, model_id="small")
    with pytest.raises(ModelExists, match="Remove it first"):
        store.add(gguf_path, model_id="small")
    assert store.verify("small") == ()


@pytest.mark.parametrize("model_id", ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "x" * 200])
def test_an_id_is_the_name_of_one_directory(store: ModelStore, model_id: str) -> None:
    with pytest.raises(InvalidModelId):
        store.path(model_id)


def test_a_missing_model_is_named(store: ModelStore) -> None:
    for action in (store.manifest, store.verify, store.remove):
        with pytest.raises(ModelMissing, match="no model nothing"):
            action("nothing")


def test_verify_names_every_difference(store: ModelStore, gguf_path: Path) -> None:
    store.add(gguf_path, model_id="small")
    path = store.path("small")
    weights = bytearray((path / WEIGHTS_FILE).read_bytes())
    weights[len(weights) // 2] ^= 1
    (path / WEIGHTS_FILE).write_bytes(weights)
    (path / "config.json").unlink()
    with (path / TOKENIZER_FILE).open("a") as stream:
        stream.write(" ")
    (path / "extra").touch()
    vocabulary = path / "vocabulary.json"
    vocabulary.rename(path.parent / "elsewhere.json")
    vocabulary.symlink_to(path.parent / "elsewhere.json")
    found = {difference.name: difference.reason for difference in store.verify("small")}
    assert set(found) == {WEIGHTS_FILE, "config.json", TOKENIZER_FILE, "extra", "vocabulary.json"}
    assert "SHA-256" in found[WEIGHTS_FILE]
    assert found["config.json"] == "is missing"
    assert "bytes instead of" in found[TOKENIZER_FILE]
    assert "symbolic link" in found["vocabulary.json"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", ""])
def test_a_manifest_cannot_name_files_elsewhere(store: ModelStore, gguf_path: Path, name: str) -> None:
    store.add(gguf_path, model_id="small")
    path = store.path("small") / MANIFEST_FILE
    document = json.loads(path.read_text())
    document["files"][name] = {"size": 1, "sha256": "00"}
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptModel, match="not a plain file name"):
        store.verify("small")


def test_a_manifest_of_another_schema_is_refused(store: ModelStore, gguf_path: Path) -> None:
    store.add(gguf_path, model_id="small")
    path = store.path("small") / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(CorruptModel, match="schema version 99"):
        store.manifest("small")


def ready_directory(store: ModelStore, gguf_path: Path) -> Path:
    """A CTranslate2 directory as someone else would have it: without a manifest of ours."""
    store.add(gguf_path, model_id="other")
    source = shutil.copytree(store.path("other"), store.directory.parent / "ready")
    (source / MANIFEST_FILE).unlink()
    store.remove("other")
    return source


def test_a_ready_directory_is_added(store: ModelStore, gguf_path: Path) -> None:
    source = ready_directory(store, gguf_path)
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    manifest = store.add(source, model_id="ready")
    assert (manifest.context_length, manifest.end_token_ids, manifest.bos_token_id) == (64, (0, 2), 1)
    assert store.verify("ready") == ()
    assert "tokenizer_config.json" not in manifest.files


def test_a_chat_template_inside_the_tokenizer_configuration_is_found(store: ModelStore, gguf_path: Path) -> None:
    source = ready_directory(store, gguf_path)
    (source / "chat_template.jinja").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    store.add(source, model_id="ready", origin=Origin(context_length=64))
    assert (store.path("ready") / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "config.json", "vocabulary.json", TOKENIZER_FILE])
def test_an_incomplete_directory_is_refused(store: ModelStore, gguf_path: Path, name: str) -> None:
    source = ready_directory(store, gguf_path)
    (source / name).unlink()
    with pytest.raises(CorruptModel, match=name):
        store.add(source, model_id="ready", origin=Origin(context_length=64))


def test_a_directory_without_a_context_length_is_refused(store: ModelStore, gguf_path: Path) -> None:
    with pytest.raises(CorruptModel, match="context length"):
        store.add(ready_directory(store, gguf_path), model_id="ready")


def test_a_symbolic_link_in_a_directory_is_refused(store: ModelStore, gguf_path: Path) -> None:
    source = ready_directory(store, gguf_path)
    (source / WEIGHTS_FILE).rename(source.parent / "weights")
    (source / WEIGHTS_FILE).symlink_to(source.parent / "weights")
    with pytest.raises(CorruptModel, match="not a plain file"):
        store.add(source, model_id="ready", origin=Origin(context_length=64))


def test_another_models_tokenizer_is_refused(store: ModelStore, gguf_path: Path) -> None:
    source = ready_directory(store, gguf_path)
    tokenizer = Tokenizer.from_file(str(source / TOKENIZER_FILE))
    tokenizer.add_tokens(["surprise"])
    tokenizer.save(str(source / TOKENIZER_FILE))
    with pytest.raises(VocabularyMismatch, match="'surprise'"):
        store.add(source, model_id="ready", origin=Origin(context_length=64))
    assert nothing_is_left(store)


@pytest.mark.parametrize("change", ["swap", "duplicate", "append"])
def test_another_models_vocabulary_is_refused(store: ModelStore, gguf_path: Path, change: str) -> None:
    source = ready_directory(store, gguf_path)
    path = source / "vocabulary.json"
    tokens = json.loads(path.read_text())
    if change == "swap":
        tokens[50], tokens[51] = tokens[51], tokens[50]
    else:
        tokens.append(tokens[50] if change == "duplicate" else "unknown")
    path.write_text(json.dumps(tokens))
    with pytest.raises(VocabularyMismatch):
        store.add(source, model_id="ready", origin=Origin(context_length=64))


def test_padding_of_a_converter_is_allowed(store: ModelStore, gguf_path: Path) -> None:
    source = ready_directory(store, gguf_path)
    path = source / "vocabulary.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), "<extra_id_0>", "<extra_id_1>"]))
    manifest = store.add(source, model_id="ready", origin=Origin(context_length=64))
    assert store.manifest("ready") == manifest


def test_an_older_conversion_of_a_packaged_model_is_replaced(
    store: ModelStore, packaged: tuple[PackagedModel, Path]
) -> None:
    model, wheel = packaged
    current = store.ensure_packaged(model, wheel=wheel)
    path = store.path(model.id) / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"converter_version": "0"}))
    assert store.ensure_packaged(model, wheel=wheel) == current == store.manifest(model.id)
    assert store.verify(model.id) == ()
    assert sorted(entry.name for entry in store.directory.iterdir()) == [".lock", model.id]


def test_a_failed_replacement_keeps_the_older_conversion(
    store: ModelStore, packaged: tuple[PackagedModel, Path], tmp_path: Path
) -> None:
    model, wheel = packaged
    store.ensure_packaged(model, wheel=wheel)
    path = store.path(model.id) / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"converter_version": "0"}))
    with pytest.raises(DownloadFailed):
        store.ensure_packaged(model, wheel=tmp_path / "absent.whl")
    assert store.verify(model.id) == ()
