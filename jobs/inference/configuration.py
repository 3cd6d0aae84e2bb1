"""The engine process's configuration file.

JSON: ``{"socket": PATH, "models": [{"id": ID, "path": DIRECTORY, "default": BOOL}, …],
"device": "auto"|"cpu"|"cuda", "compute_type": TYPE|null, "queue_size": N}``. A model entry may have
``"scripted": {…}`` instead of ``path`` (tests; see ``scripted``). Guarantees: unknown or ill-typed
entries are refused with a line that names them. Reads one file, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.inference.scripted import Script

DEFAULT_QUEUE_SIZE = 64


class ConfigurationError(Exception):
    """The configuration cannot be used; the text says which entry and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model to load from ``path``, or a ``script`` to play."""

    id: str
    path: Path
    default: bool
    script: Script | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfiguration:
    """``queue_size`` is how many requests may wait per model. The default model comes first."""

    socket: Path
    models: tuple[ModelEntry, ...]
    device: str
    compute_type: str | None
    queue_size: int


def read_configuration(path: Path) -> EngineConfiguration:
    """Read and check the file. Raises ``ConfigurationError``."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        _refuse_unknown(document, known={"socket", "models", "device", "compute_type", "queue_size"})
        models = sorted((_model(entry) for entry in document["models"]), key=lambda model: not model.default)
        queue_size = int(document.get("queue_size", DEFAULT_QUEUE_SIZE))
        compute_type = document.get("compute_type")
        configuration = EngineConfiguration(
            socket=Path(document["socket"]),
            models=tuple(models),
            device=str(document.get("device", "auto")),
            compute_type=None if compute_type is None else str(compute_type),
            queue_size=queue_size,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The engine configuration {path} is not usable ({type(error).__name__}: {error})."
        ) from error
    if not models or len({model.id for model in models}) != len(models) or queue_size < 0:
        raise ConfigurationError(
            f"The engine configuration {path} needs at least one model, each id once, and queue_size ≥ 0."
        )
    return configuration


def _model(entry: Mapping[str, Any]) -> ModelEntry:
    _refuse_unknown(entry, known={"id", "path", "default", "scripted"})
    scripted = entry.get("scripted")
    return ModelEntry(
        id=str(entry["id"]),
        path=Path(entry["path"]) if scripted is None else Path(),
        default=bool(entry.get("default", False)),
        script=None if scripted is None else Script(**scripted),
    )


def _refuse_unknown(entry: Mapping[str, Any], *, known: set[str]) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"unknown entry {unknown[0]!r}")
