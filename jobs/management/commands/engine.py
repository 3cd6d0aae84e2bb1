"""`manage.py engine`: become the engine process for the models of the catalog."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from jobs.engine_config import NothingToServe, write_engine_config


class Command(BaseCommand):
    help = "Serve the catalog's models on the engine socket until stopped."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            path = write_engine_config()
        except NothingToServe as nothing:
            raise CommandError(str(nothing)) from nothing
        connections.close_all()
        # The engine needs neither Django nor the database: replace this process by one without them.
        os.execv(sys.executable, [sys.executable, "-m", "jobs.inference.process", "--config", str(path)])  # noqa: S606
