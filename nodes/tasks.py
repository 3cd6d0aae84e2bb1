"""Work on models that takes too long, and too much memory, for a request or a worker."""

from __future__ import annotations

import subprocess
import sys

from celery import shared_task
from django.conf import settings

from nodes import catalog


@shared_task
def check_model(model_id: str) -> None:
    """Compare a stored model with its reference again, in a process of its own, which writes the outcome."""
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "models", "check", model_id]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 fixed program
    if finished.returncode not in (0, 1):
        lines = finished.stderr.strip().splitlines() or ["no message"]
        why = "killed, probably for memory" if finished.returncode < 0 else lines[-1]
        catalog.record_check(model_id, check=None, error=f"The check itself ended ({why}). Try again.")
