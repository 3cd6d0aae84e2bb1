"""The models that the engine's configuration file names, as sources that can be loaded.

Guarantees: a model whose manifest cannot be read is a source all the same, whose loading says what is
wrong with it; two sources of the same ``identity`` have the same files. Loads nothing and verifies no
file (``load`` does, where it is called).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from jobs.inference.configuration import ModelEntry, read_models
from jobs.inference.ctranslate2_engine import describe, load_generator
from jobs.inference.engine import LoadedModel
from jobs.inference.generator import ModelLoadError, TokenGenerator
from jobs.inference.placement import Placement
from jobs.inference.scripted import ScriptedGenerator
from jobs.inference.shelf import ModelSource, Progress
from nodes.model_manifest import ModelError, read_manifest

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class ConfiguredModels:
    """The models of the configuration file at ``path``, which may change while the engine runs."""

    def __init__(self, path: Path, *, placement: Placement) -> None:
        self._path = path
        self._placement = placement
        self._read: _Stamp | None = None

    def read(self) -> tuple[ModelSource, ...]:
        """What the file names now, the default first. Raises ``ConfigurationError``.

        Reads the file and the models' manifests, a few kilobytes each.
        """
        self._read = self._stamp()
        entries = read_models(self._path)
        return tuple(
            _source(entry, first=number == 0, placement=self._placement) for number, entry in enumerate(entries)
        )

    @property
    def changed(self) -> bool:
        """Whether the file was replaced or written since it was read."""
        return self._stamp() != self._read

    def _stamp(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)


def _source(model: ModelEntry, *, first: bool, placement: Placement) -> ModelSource:
    """The first model, which is the default, is kept; the others are loaded when they are asked for."""
    keep = first or model.pinned
    if model.script is not None:
        scripted = ScriptedGenerator(model.id, script=model.script)
        return ModelSource(
            description=scripted.loaded, load=lambda _: scripted, keep=keep, identity=f"{model.script!r}"
        )
    try:
        manifest = read_manifest(model.path)
    except ModelError as error:
        problem = ModelLoadError(f"Cannot serve {model.id}: {error}")
        return ModelSource(description=_unknown(model.id, placement=placement), load=_refusal(problem), keep=keep)

    def load(progress: Progress) -> TokenGenerator:
        logger.info("verifying and loading %s from %s", model.id, model.path)
        return load_generator(model.path, model_id=model.id, placement=placement, progress=progress)

    description = describe(
        manifest,
        model_id=model.id,
        placement=placement,
        compute_type=placement.compute_type,
        state="unloaded",
    )
    return ModelSource(description=description, load=load, keep=keep, identity=f"{model.path} {manifest.fingerprint}")


def _unknown(model_id: str, *, placement: Placement) -> LoadedModel:
    return LoadedModel(
        model=model_id,
        context_length=0,
        vocabulary_size=0,
        device=placement.device,
        compute_type=placement.compute_type,
        replicas=placement.replicas,
        state="failed",
    )


def _refusal(problem: ModelLoadError) -> Callable[[Progress], TokenGenerator]:
    def load(progress: Progress) -> TokenGenerator:
        raise problem

    return load
