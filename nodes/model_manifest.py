"""What a stored model consists of, as written in its ``fabstir-model.json``.

Guarantees: a manifest that was read is complete and typed, and ``differences`` compares every byte
of every listed file with its recorded SHA-256, so an overwritten weight file (which CTranslate2
loads silently) is found. Does not create, download or convert models and knows no database.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
CONVERTER_VERSION = "3"
MANIFEST_FILE = "fabstir-model.json"
WEIGHTS_FILE = "model.bin"
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
VOCABULARY_FILES = ("vocabulary.json", "vocabulary.txt")

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ModelError(Exception):
    """Base of everything that can be wrong with a model; its text is one line for the operator."""


class CorruptModel(ModelError):
    """A file of a model is damaged, incomplete, unreadable or not what its manifest says."""


class InvalidModelId(ModelError):
    """The model id cannot be the name of a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """Size in bytes and lower-case hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDifference:
    """One file that is not what the manifest says, and why (a short phrase)."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionCheck:
    """How a stored model was compared with a reference before it could be served.

    ``tokens`` positions of a short text were predicted; ``agreement`` is the share of them where the
    stored model and the reference have the same first choice, and ``perplexity_ratio`` the stored
    model's perplexity over the reference's. Both are None where there was no reference.
    """

    method: str
    tokens: int
    perplexity: float
    agreement: float | None = None
    perplexity_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """A stored model. ``context_length`` is in token ids, prompt and completion together.

    ``end_token_ids`` are all ids that end an answer: the end of sequence and the end of a turn.
    ``revision`` is the commit of a model that came from a hub. ``check`` is None only for models
    that were stored before conversions were checked.
    """

    id: str
    source: str
    architecture: str
    context_length: int
    vocabulary_size: int
    bos_token_id: int | None
    eos_token_id: int
    end_token_ids: tuple[int, ...]
    quantization: str
    files: Mapping[str, FileDigest]
    revision: str = ""
    check: ConversionCheck | None = None
    converter_version: str = CONVERTER_VERSION
    schema_version: int = SCHEMA_VERSION

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(digest.size for digest in self.files.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all that the manifest says: another one means other files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write the manifest into ``directory``."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def check_model_id(model_id: str) -> None:
    """Raise ``InvalidModelId`` unless the id is safe as the name of one directory."""
    if not _MODEL_ID.fullmatch(model_id):
        raise InvalidModelId(
            f"{model_id!r} is not a model id: use letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )


def read_manifest(directory: Path) -> ModelManifest:
    """Read the manifest of the model in ``directory``. Raises ``CorruptModel``."""
    path = directory / MANIFEST_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        manifest = _from_document(document)
    except FileNotFoundError as error:
        raise CorruptModel(f"{directory} holds no model: {MANIFEST_FILE} is missing. Add the model again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptModel(
            f"{path} is unreadable ({type(error).__name__}: {error}). Remove and add the model again."
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise CorruptModel(
            f"{path} has schema version {manifest.schema_version}, this software reads {SCHEMA_VERSION}."
            " Remove and add the model again."
        )
    return manifest


def digest_directory(directory: Path) -> dict[str, FileDigest]:
    """Digest every regular file of ``directory`` but the manifest itself, by name."""
    paths = sorted(path for path in directory.iterdir() if path.name != MANIFEST_FILE)
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise CorruptModel(f"{path} is not a plain file. A model directory holds plain files only.")
    return {path.name: digest_file(path) for path in paths}


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of one file, read once in full."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileDigest(size=stream.tell(), sha256=sha256)


def differences(directory: Path, *, manifest: ModelManifest) -> tuple[FileDifference, ...]:
    """Every file of the model that is missing, unlisted or not as recorded; empty if all is well."""
    found = []
    for name, recorded in sorted(manifest.files.items()):
        reason = _difference(directory / name, recorded=recorded)
        if reason is not None:
            found.append(FileDifference(name=name, reason=reason))
    expected = {*manifest.files, MANIFEST_FILE}
    for path in sorted(directory.iterdir()):
        if path.name not in expected:
            found.append(FileDifference(name=path.name, reason="is not listed in the manifest"))
    return tuple(found)


def require_intact(directory: Path) -> ModelManifest:
    """Read the manifest and verify every file. Raises ``CorruptModel`` naming what differs."""
    manifest = read_manifest(directory)
    found = differences(directory, manifest=manifest)
    if found:
        listed = "; ".join(f"{item.name} {item.reason}" for item in found)
        raise CorruptModel(f"Model {manifest.id} in {directory} is damaged: {listed}. Remove it and add it again.")
    return manifest


def read_vocabulary(directory: Path) -> list[str]:
    """The model's own tokens, by id. Raises ``CorruptModel``."""
    for name in VOCABULARY_FILES:
        path = directory / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return text.removesuffix("\n").split("\n")
        tokens = json.loads(text)
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return tokens
        raise CorruptModel(f"{path} is not a list of tokens. Remove and add the model again.")
    raise CorruptModel(f"{directory} has no vocabulary.json. Add a CTranslate2 model together with it.")


def _difference(path: Path, *, recorded: FileDigest) -> str | None:
    try:
        if path.is_symlink():
            return "is a symbolic link"
        size = path.stat().st_size
        if size != recorded.size:
            return f"has {size} bytes instead of {recorded.size}"
        return None if digest_file(path) == recorded else "has other content than recorded (SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _from_document(document: dict[str, Any]) -> ModelManifest:
    files = {
        _plain_name(name): FileDigest(size=int(entry["size"]), sha256=str(entry["sha256"]))
        for name, entry in document["files"].items()
    }
    bos, check = document["bos_token_id"], document.get("check")
    return ModelManifest(
        id=str(document["id"]),
        source=str(document["source"]),
        architecture=str(document["architecture"]),
        context_length=int(document["context_length"]),
        vocabulary_size=int(document["vocabulary_size"]),
        bos_token_id=None if bos is None else int(bos),
        eos_token_id=int(document["eos_token_id"]),
        end_token_ids=tuple(int(token) for token in document["end_token_ids"]),
        quantization=str(document["quantization"]),
        files=files,
        revision=str(document.get("revision", "")),
        check=None if check is None else _check_from(check),
        converter_version=str(document["converter_version"]),
        schema_version=int(document["schema_version"]),
    )


def _check_from(document: dict[str, Any]) -> ConversionCheck:
    agreement, ratio = document["agreement"], document["perplexity_ratio"]
    return ConversionCheck(
        method=str(document["method"]),
        tokens=int(document["tokens"]),
        perplexity=float(document["perplexity"]),
        agreement=None if agreement is None else float(agreement),
        perplexity_ratio=None if ratio is None else float(ratio),
    )


def _plain_name(name: str) -> str:
    if not name or name in {".", ".."} or Path(name).name != name:
        raise ValueError(f"{name!r} is not a plain file name")
    return name
