"""Settlement at scale: claims per second on one anvil, and the restart of a node with many open jobs.

Works in a temporary data directory with a database and a chain of its own. The ratio compares with signed
transactions sent to the same anvil in the same run, one after another, without any bookkeeping.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil

CHECKOUT = Path(__file__).resolve().parents[2]
CLAIMS = 1_000
JOBS = 50
OPEN_JOBS = 10_000
USAGE_ROWS = 1_000_000


def measure(
    *, claims: int = CLAIMS, jobs: int = JOBS, open_jobs: int = OPEN_JOBS, usage_rows: int = USAGE_ROWS
) -> dict[str, float]:
    """All figures, by name."""
    figures: dict[str, float] = {}
    with _node() as environ:
        figures |= _run("throughput", environ, claims, jobs)
    with _node(many=True) as environ:
        figures |= _run("many_jobs", environ, open_jobs, usage_rows)
        for name in ("first reconciliation", "reconciliation after a restart"):
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "manage.py", "reconcile"], env=environ, cwd=CHECKOUT, check=True, stdout=sys.stderr
            )
            figures[f"{name}: {open_jobs} open jobs, {usage_rows} usage rows, s"] = time.monotonic() - started
        figures |= _run("first_round", environ)
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "manage.py", "verify_ledger"], env=environ, cwd=CHECKOUT, check=True, stdout=sys.stderr
        )
        figures["verify_ledger over the same, s"] = time.monotonic() - started
    return figures


@contextmanager
def _node(*, many: bool = False) -> Iterator[dict[str, str]]:
    """A migrated data directory whose chain is an anvil of its own."""
    binary = fetch_anvil(tools_dir=CHECKOUT / "var" / "tools", progress=print)
    with tempfile.TemporaryDirectory(prefix="fabstir-bench-") as folder, local.TemporaryAnvil(binary=binary) as anvil:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FABSTIR_", "CONTRACT_"))},
            "DJANGO_SETTINGS_MODULE": "fabstir_site.settings",
            "FABSTIR_DATA_DIR": folder,
            "FABSTIR_TOOLS_DIR": str(CHECKOUT / "var" / "tools"),
            "RPC_URL": anvil.url,
            "CHAIN_ID": str(local.CHAIN_ID),
            # Above what an open job of the many holds: they are found and looked at, not claimed.
            "CHECKPOINT_THRESHOLD": "1000" if many else "100",
        }
        made = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.settling_host", "prepare", anvil.url, folder],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "fabstir_site.settings"},
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
            text=True,
        )
        environ["HOST_PRIVATE_KEY"] = json.loads(made.stdout.splitlines()[-1])["key"]
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], env=environ, cwd=CHECKOUT, check=True)
        yield environ


def _run(what: str, environ: Mapping[str, str], *numbers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.settling_host", what, *map(str, numbers)]
    done = subprocess.run(command, env=environ, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    small = {"claims": 100, "jobs": 10, "open_jobs": 200, "usage_rows": 5_000} if "--small" in sys.argv else {}
    print(json.dumps(measure(**small), indent=2))
