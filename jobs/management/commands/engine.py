"""`manage.py engine`: become the engine process for the models of the catalog."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from nodes import catalog


class Command(BaseCommand):
    help = "Serve the catalog's models on the engine socket until stopped."

    def handle(self, *args: Any, **options: Any) -> None:
        environment = settings.ENVIRONMENT
        models = catalog.served_models()
        if not models:
            raise CommandError("No model is served. Run `manage.py models add smollm2-135m-instruct`.")
        compute_type = environment.engine_compute_type
        config = {
            "socket": str(environment.engine_socket),
            "models": [{"id": model.id, "path": model.path, "default": model.is_default} for model in models],
            "device": environment.engine_device,
            "compute_type": None if compute_type == "default" else compute_type,
            "queue_size": environment.engine_queue_size,
        }
        path = environment.run_dir / "engine.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment.engine_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2))
        connections.close_all()
        # The engine needs neither Django nor the database: replace this process by one without them.
        os.execv(sys.executable, [sys.executable, "-m", "jobs.inference.process", "--config", str(path)])  # noqa: S606
