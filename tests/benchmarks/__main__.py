"""`make bench`: start, memory, serving and settlement of a real node, as JSON and as a table.

Starts a node of its own in a temporary data directory, cold and warm, and measures it. Ratios are
taken within one run, alternately, and reported as medians: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import settlement

CHECKOUT = Path(__file__).resolve().parents[2]
RESULT = CHECKOUT / "var" / "bench.json"
MEBIBYTE = 2**20

GOALS = {
    "warm start, s": ("<=", 10.0),
    "resident memory of the idle tree without the model, MiB": ("<=", 1.2 * 1024),
    "one WebSocket stream / raw CTranslate2": (">=", 0.9),
    "100th token to confirmed event, s": ("<=", 5.0),
    "gap p99 with claims / without": ("<=", 1.2),
    "checkpoints / plain signed transactions": (">=", 0.25),
    "WebSocket / raw, 16 streams": (">=", 0.9),
    "WebSocket / llama.cpp, 16 streams": (">=", 2.0),
    "WebSocket / raw, 1 streams": (">=", 0.95),
    "WebSocket, 1 streams: first token after raw's, ms": ("<=", 10.0),
    "WebSocket, mixed lengths / one at a time": (">=", 2.2),
    "WebSocket / llama.cpp, mixed lengths": (">=", 1.8),
    "WebSocket, mixed lengths: latest end / even share": ("<=", 2.0),
    "full queue: 503 over HTTP, median, ms": ("<=", 50.0),
    "full queue: 503 over HTTP, slowest of 100, ms": ("<=", 50.0),
    "full queue: error frame over WebSocket, median, ms": ("<=", 50.0),
    "full queue: error frame over WebSocket, slowest of 100, ms": ("<=", 50.0),
    "answer p95 beside hostile peers / without": ("<=", 1.1),
    "reconciliation after a restart: 10000 open jobs, 1000000 usage rows, s": ("<=", 60.0),
}


# Of a running node, each a module of its own; the soak takes as long as it is told.
PARTS = ("running_node", "gaps", "serving", "full_queue", "sockets", "soak")
USUAL = ("running_node", "gaps", "serving", "full_queue", "settlement")


def main() -> int:
    """Measure, print, store. Exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "settlement"], metavar="part", help=f"of {PARTS}")
    parts = parser.parse_args().parts or list(USUAL)
    with tempfile.TemporaryDirectory(prefix="fabstir-bench-") as folder:
        environ = _environ(Path(folder))
        figures: dict[str, float] = {}
        with _node(environ) as (_, seconds):
            figures["cold start (empty data directory, downloads included), s"] = seconds
        with _node(environ) as (node, seconds):
            figures["warm start, s"] = seconds
            time.sleep(10)
            figures |= _memory(node, Path(folder))
            for module in (part for part in parts if part in PARTS):
                measured = subprocess.run(
                    [sys.executable, "-m", f"tests.benchmarks.{module}"],
                    env=environ,
                    cwd=CHECKOUT,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                figures |= json.loads(measured.stdout.splitlines()[-1])
    if "settlement" in parts:
        figures |= settlement.measure()
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "figures": figures,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    return _report(result)


def _environ(folder: Path) -> dict[str, str]:
    own = ("FABSTIR_", "API_PORT")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("FABSTIR_BENCH_") or not name.startswith(own)
    }
    return {
        **kept,
        "FABSTIR_DATA_DIR": str(folder),
        "API_PORT": "18080",
        "FABSTIR_DISCONNECT_GRACE_SECONDS": "1",
        # Here everybody waits for their answers, however many ask at once.
        "FABSTIR_WS_PLAINTEXT_SECONDS": "0",
    }


@contextmanager
def _node(environ: Mapping[str, str]) -> Iterator[tuple[psutil.Process, float]]:
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fabstir_site.embedded"],
        env=dict(environ),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "fabstir: ready" in line:
            break
    else:
        raise SystemExit("the node did not start:\n" + "".join(lines))
    try:
        yield psutil.Process(process.pid), time.monotonic() - started
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _memory(node: psutil.Process, folder: Path) -> dict[str, float]:
    """Resident memory of the process tree; shared pages are counted in each process."""
    tree = [node, *node.children(recursive=True)]
    resident = sum(process.memory_info().rss for process in tree) / MEBIBYTE
    model = sum(path.stat().st_size for path in (folder / "models").rglob("model.bin")) / MEBIBYTE
    return {
        "resident memory of the idle tree, MiB": resident,
        "model file, MiB": model,
        "resident memory of the idle tree without the model, MiB": resident - model,
    }


def _report(result: Mapping[str, Any]) -> int:
    missed = 0
    print(f"{result['at']}  {result['machine']}")
    for name, value in result["figures"].items():
        verdict = ""
        if name in GOALS:
            sign, goal = GOALS[name]
            met = value <= goal if sign == "<=" else value >= goal
            missed += not met
            verdict = f"   goal {sign} {goal:g}: {'met' if met else 'MISSED'}"
        print(f"{name:<76} {value:>9.2f}{verdict}")
    print(f"stored in {RESULT.relative_to(CHECKOUT)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
