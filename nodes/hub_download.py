"""Models from a Hugging Face hub: one commit, only the files that are needed, safetensors only.

Guarantees: a name of a branch is resolved to its commit once and the commit is what is fetched and
recorded; there is room on the disk before anything is fetched; an interrupted download goes on
where it stopped; large files are compared with the hub's SHA-256. Never fetches pickles or code.
A token for private models is read by ``huggingface_hub`` itself (``HF_TOKEN``).
"""

from __future__ import annotations

import errno
import fnmatch
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars

from nodes.converted_model import Progress
from nodes.model_manifest import CorruptModel, ModelError, digest_file
from nodes.model_staging import DiskFull, require_room

_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+?))?(?::(?P<file>[\w.-]+\.gguf))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NEEDED = (
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
)
_PARTIAL = ".downloads"


class HubUnavailable(ModelError):
    """The hub did not give what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """``org/name@revision``, for GGUF repositories with ``:file.gguf``. ``revision`` may be a branch."""

    repository: str
    revision: str
    file: str | None

    @property
    def name(self) -> str:
        """A model id made of the repository's name or the file's."""
        return (self.file or self.repository.partition("/")[2]).removesuffix(".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What was fetched: a GGUF file or a directory, and the commit that it is of."""

    path: Path
    commit: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _RemoteFile:
    """``size`` is in bytes; ``sha256`` is None for small files, which the hub does not hash so."""

    name: str
    size: int
    sha256: str | None


def parse_hub_name(text: str) -> HubModel | None:
    """``org/name``, ``org/name@revision`` or ``org/name@revision:file.gguf``; None if it is something else."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return HubModel(repository=match["repository"], revision=match["revision"] or "main", file=match["file"])


def download(model: HubModel, *, store: Path, progress: Progress, endpoint: str | None = None) -> Downloaded:
    """Fetch one commit of ``model`` into a hidden folder of the model store at ``store``.

    ``endpoint`` is the hub's address; by default ``HF_ENDPOINT`` or huggingface.co. Raises
    ``HubUnavailable``, ``DiskFull`` and ``CorruptModel``.
    """
    disable_progress_bars()
    try:
        commit, files = _resolve(model, endpoint=endpoint)
        if not _COMMIT.fullmatch(model.revision):
            progress(f"{model.repository}@{model.revision} is commit {commit}")
        directory = store / _PARTIAL / f"{model.repository.replace('/', '--')}--{commit}"
        directory.mkdir(parents=True, exist_ok=True)
        missing = sum(file.size for file in files if not (directory / file.name).is_file())
        require_room(directory, room=missing)
        for number, file in enumerate(files, start=1):
            progress(f"Downloading {number} of {len(files)}: {file.name} ({file.size / 1e6:.1f} MB)")
            _fetch(file, model=model, commit=commit, directory=directory, endpoint=endpoint)
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"{store} is full. Free some space and run the command again to go on.") from error
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubUnavailable(
            f"{model.repository}@{model.revision} could not be fetched ({line}). Check the name, the network and, for"
            " private models, HF_TOKEN; run the command again to go on."
        ) from error
    return Downloaded(path=directory / model.file if model.file else directory, commit=commit, directory=directory)


def forget(downloaded: Downloaded) -> None:
    """Delete what was fetched, once it is converted."""
    shutil.rmtree(downloaded.directory, ignore_errors=True)


def _resolve(model: HubModel, *, endpoint: str | None) -> tuple[str, Sequence[_RemoteFile]]:
    found = HfApi(endpoint=endpoint).model_info(model.repository, revision=model.revision, files_metadata=True)
    commit = found.sha or ""
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(model.revision) and commit != model.revision):
        raise HubUnavailable(f"The hub names {commit!r} as the commit of {model.repository}@{model.revision}. Stop.")
    files = [
        _RemoteFile(name=item.rfilename, size=item.size or 0, sha256=item.lfs.sha256 if item.lfs else None)
        for item in found.siblings or ()
        if _is_needed(item.rfilename, file=model.file)
    ]
    weights = [file for file in files if file.name.endswith((".safetensors", ".gguf"))]
    if not weights:
        wanted = model.file or "safetensors (pickled weights are never fetched)"
        raise HubUnavailable(
            f"{model.repository}@{commit[:8]} has no {wanted}. Choose another revision, or name a file with"
            f" {model.repository}@{commit[:8]}…:FILE.gguf."
        )
    return commit, files


def _is_needed(name: str, *, file: str | None) -> bool:
    if file is not None:
        return name == file
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in _NEEDED)


def _fetch(file: _RemoteFile, *, model: HubModel, commit: str, directory: Path, endpoint: str | None) -> None:
    path = Path(
        hf_hub_download(
            model.repository, file.name, revision=commit, local_dir=directory, endpoint=endpoint, library_name="fabstir"
        )
    )
    if file.sha256 is not None and digest_file(path).sha256 != file.sha256:
        path.unlink()
        raise CorruptModel(f"{file.name} is not what the hub says (SHA-256 differs); it was deleted. Try again.")
