"""The engine process's configuration, written from the catalog and the environment.

The engine itself knows neither: it reads this file.
"""

from __future__ import annotations

import json
from pathlib import Path

from django.conf import settings

from nodes import catalog


class NothingToServe(Exception):
    """The catalog holds no enabled model."""


def write_engine_config() -> Path:
    """Write the configuration for the models served now. Raises ``NothingToServe``."""
    environment = settings.ENVIRONMENT
    models = catalog.served_models()
    if not models:
        raise NothingToServe("No model is served. Run `manage.py models add default`.")
    compute_type = environment.engine_compute_type
    config = {
        "socket": str(environment.engine_socket),
        "models": [{"id": model.id, "path": model.path, "default": model.is_default} for model in models],
        "device": environment.engine_device,
        "compute_type": None if compute_type == "default" else compute_type,
        "queue_size": environment.engine_queue_size,
    }
    path: Path = environment.engine_config_file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment.engine_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2))
    return path
