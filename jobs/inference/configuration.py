"""The engine process's configuration file.

JSON: ``{"socket": PATH, "models": [{"id": ID, "path": DIRECTORY, "default": BOOL, "pinned": BOOL}, …],
"device": "auto"|"cpu"|"cuda", "device_indexes": [N, …]|null, "compute_type": TYPE|null, "replicas": N|null,
"threads": N|null, "batch_rows": N|null, "queue_size": N, "memory_mb": N|null, "idle_seconds": N|null}``.
Null means: choose by what is there, or no limit. A model entry may have ``"scripted": {…}`` instead of
``path`` (tests; see ``scripted``). Guarantees: unknown or ill-typed entries are refused with a line that
names them. Reads one file, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jobs.inference.scripted import Script

DEFAULT_QUEUE_SIZE = 64
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)


class ConfigurationError(Exception):
    """The configuration cannot be used; the text says which entry and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model to load from ``path``, or a ``script`` to play. A ``pinned`` one is never unloaded."""

    id: str
    path: Path
    default: bool
    pinned: bool
    script: Script | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfiguration:
    """``queue_size`` is how many requests may wait per model. The default model comes first.

    ``replicas`` batches per model (and GPU) run at the same time, with ``threads`` CPU threads each
    and at most ``batch_rows`` requests. ``memory_mb`` (10^6 bytes) limits the weights in memory; a
    model that is not pinned is unloaded after ``idle_seconds`` without a request.
    """

    socket: Path
    models: tuple[ModelEntry, ...]
    device: str
    device_indexes: tuple[int, ...] | None
    compute_type: str | None
    replicas: int | None
    threads: int | None
    batch_rows: int | None
    queue_size: int
    memory_mb: int | None
    idle_seconds: int | None


def read_configuration(path: Path) -> EngineConfiguration:
    """Read and check the file. Raises ``ConfigurationError``."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        _refuse_unknown(document, known={field.name for field in fields(EngineConfiguration)})
        models = _models(document)
        queue_size = int(document.get("queue_size", DEFAULT_QUEUE_SIZE))
        compute_type, indexes = document.get("compute_type"), document.get("device_indexes")
        configuration = EngineConfiguration(
            socket=Path(document["socket"]),
            models=models,
            device=str(document.get("device", "auto")),
            device_indexes=None if indexes is None else tuple(map(int, indexes)),
            compute_type=None if compute_type is None else str(compute_type),
            replicas=_positive(document, "replicas"),
            threads=_positive(document, "threads"),
            batch_rows=_positive(document, "batch_rows"),
            queue_size=queue_size,
            memory_mb=_positive(document, "memory_mb"),
            idle_seconds=_positive(document, "idle_seconds"),
        )
    except _MALFORMED as error:
        raise _unusable(path, error) from error
    if not models or not _each_once(models) or queue_size < 0:
        raise ConfigurationError(
            f"The engine configuration {path} needs at least one model, each id once, and queue_size ≥ 0."
        )
    return configuration


def read_models(path: Path) -> tuple[ModelEntry, ...]:
    """The models that the file names now, the default one first; possibly none. Raises ``ConfigurationError``."""
    try:
        models = _models(json.loads(path.read_text(encoding="utf-8")))
    except _MALFORMED as error:
        raise _unusable(path, error) from error
    if not _each_once(models):
        raise ConfigurationError(f"The engine configuration {path} names a model twice.")
    return models


def _unusable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"The engine configuration {path} is not usable ({type(error).__name__}: {error}).")


def _models(document: Mapping[str, Any]) -> tuple[ModelEntry, ...]:
    return tuple(sorted((_model(entry) for entry in document["models"]), key=lambda model: not model.default))


def _each_once(models: Sequence[ModelEntry]) -> bool:
    return len({model.id for model in models}) == len(models)


def _model(entry: Mapping[str, Any]) -> ModelEntry:
    _refuse_unknown(entry, known={"id", "path", "default", "pinned", "scripted"})
    scripted = entry.get("scripted")
    return ModelEntry(
        id=str(entry["id"]),
        path=Path(entry["path"]) if scripted is None else Path(),
        default=bool(entry.get("default", False)),
        pinned=bool(entry.get("pinned", False)),
        script=None if scripted is None else Script(**scripted),
    )


def _refuse_unknown(entry: Mapping[str, Any], *, known: set[str]) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"unknown entry {unknown[0]!r}")


def _positive(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if int(value) < 1:
        raise ValueError(f"{name} must be 1 or more, or null")
    return int(value)
