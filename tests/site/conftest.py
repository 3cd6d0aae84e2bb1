"""The node as a person starts it: a child process with a data directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import requests

from settlement.chain import local

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 150
_READ = (
    "FABSTIR_",
    "HOST_",
    "CONTRACT_",
    "RPC_URL",
    "CHAIN_ID",
    "CHECKPOINT_",
    "API_PORT",
    "USDC_",
    "DATABASE_",
    "REDIS_",
)


class Node:
    """`make run` without make."""

    def __init__(self, data_dir: Path, **environ: str) -> None:
        self.data_dir = data_dir
        self.port = local.free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_READ)}
        defaults = {
            "FABSTIR_DATA_DIR": str(data_dir),
            "FABSTIR_TOOLS_DIR": os.environ.get("FABSTIR_TOOLS_DIR") or str(ROOT / "var" / "tools"),
            "API_PORT": str(self.port),
        }
        self.environ = kept | defaults | environ
        self._output = tempfile.NamedTemporaryFile(prefix="fabstir-node-", suffix=".log")  # noqa: SIM115 - closed with the node
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._output.truncate(0)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fabstir_site.embedded"],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return Path(self._output.name).read_text(errors="replace").replace("\0", "")

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while "ready in" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(_PATIENCE_SECONDS)

    def interrupt(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def refusal(self, *, leaves: Sequence[str] = ()) -> str:
        """Start, and return the one line that says why it cannot. ``leaves``: processes that may go on."""
        self.start()
        code = self.wait()
        lines = [line for line in self.output.splitlines() if "cannot start:" in line]
        assert code != 0, self.output
        assert len(lines) == 1, self.output
        assert "Traceback" not in self.output
        assert sorted(self.children()) == sorted(leaves)
        return lines[0]

    def children(self) -> list[str]:
        """Processes that work on this data directory."""
        found = []
        for process in psutil.process_iter():
            try:
                owner = process.environ().get("FABSTIR_DATA_DIR")
                command = process.cmdline()
            except psutil.Error:
                continue
            mine = owner == str(self.data_dir) or any(str(self.data_dir) in part for part in command)
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(command))
        return found

    def get(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.interrupt()
        self._output.close()


def give_model(data_dir: Path, model: Path) -> Path:
    """A copy of a converted model where the node finds it."""
    return shutil.copytree(model, data_dir / "models" / model.name)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not under pytest's own directory: its path may be longer than a Unix socket's.
    path = Path(tempfile.mkdtemp(prefix="fabstir-data-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def node(data_dir: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(directory: Path = data_dir, **environ: str) -> Node:
        made.append(Node(directory, **environ))
        return made[-1]

    yield make
    for each in made:
        each.close()
