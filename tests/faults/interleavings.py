"""The property test of the transaction manager at full length.

``python -m tests.faults.interleavings --examples 5000`` plays that many random interleavings, in as many processes
as there are cores, and says how often each rule was applied. A failure is shrunk and shown as the steps to play
again. Loads Django with a database of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import django
from django.db import connection

ROOT = Path(__file__).resolve().parents[2]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.interleavings", description=__doc__)
    parser.add_argument("--examples", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _in_processes(arguments: argparse.Namespace) -> int:
    each = -(-arguments.examples // arguments.workers)
    command = [sys.executable, "-m", "tests.faults.interleavings", "--examples", str(each), "--workers", "1"]
    workers = [
        subprocess.Popen([*command, "--seed", str(arguments.seed + number)], cwd=ROOT)
        for number in range(arguments.workers)
    ]
    return max(worker.wait() for worker in workers)


def _explore(arguments: argparse.Namespace, *, folder: str) -> str:
    """What was played, in words. Raises ``AssertionError``."""
    for name in [name for name in os.environ if name.startswith(("FABSTIR_", "HOST_", "DATABASE_URL", "RPC_URL"))]:
        del os.environ[name]
    os.environ |= {"DJANGO_SETTINGS_MODULE": "fabstir_site.settings", "FABSTIR_DATA_DIR": folder}
    django.setup()
    connection.creation.create_test_db(verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=OFF")
    # Imports models, so Django has to be there first.
    steps: Any = importlib.import_module("tests.faults.steps")
    started = time.monotonic()
    tally = steps.explore(examples=arguments.examples, number=arguments.seed)
    seconds = time.monotonic() - started
    lines = [
        f"seed {arguments.seed}: {tally.examples} interleavings, {tally.steps} steps in {seconds:.0f} s",
        f"{tally.deaths} deaths, {tally.attempts} signed transactions",
    ]
    for counts in (tally.rules, tally.transitions, tally.ends):
        lines.append(", ".join(f"{name}: {times}" for name, times in counts.most_common()))
    return "\n".join(lines)


def main() -> int:
    arguments = _arguments()
    if arguments.workers > 1:
        return _in_processes(arguments)
    folder = tempfile.mkdtemp(prefix="fabstir-interleavings-")
    try:
        sys.stdout.write(_explore(arguments, folder=folder) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
