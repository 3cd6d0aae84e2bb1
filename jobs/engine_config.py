"""The engine process's configuration, written from the catalog and the environment.

The engine itself knows neither: it reads this file, at its start and when it is told that the models have
changed. Guarantees that a reader sees one whole configuration, and that of several writers the one who looked
into the catalog last has the last word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

from nodes import catalog


class NothingToServe(Exception):
    """The catalog holds no enabled model."""


def write_engine_config() -> Path:
    """Write the configuration for the models served now. Raises ``NothingToServe``, with a file that names none."""
    path: Path = settings.ENVIRONMENT.engine_config_file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.ENVIRONMENT.engine_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path):
        configuration = _configuration()
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(configuration, indent=2))
        os.replace(fresh, path)
    if not configuration["models"]:
        raise NothingToServe("No model is served. Run `manage.py models add default`.")
    return path


def _configuration() -> dict[str, Any]:
    environment = settings.ENVIRONMENT
    compute_type = environment.engine_compute_type
    options = environment.engine_options
    return {
        "socket": str(environment.engine_socket),
        "models": [
            {
                "id": model.id,
                "path": model.path,
                "default": model.is_default,
                "pinned": not {model.id, *model.aliases}.isdisjoint(options.pinned),
            }
            for model in catalog.served_models()
        ],
        "device": environment.engine_device,
        "device_indexes": options.gpus,
        "compute_type": None if compute_type == "default" else compute_type,
        "replicas": options.replicas,
        "threads": options.threads,
        "batch_rows": options.batch_rows,
        "queue_size": environment.engine_queue_size,
        "memory_mb": options.memory_mb,
        "idle_seconds": options.idle_seconds,
    }


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time looks into the catalog and writes."""
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
