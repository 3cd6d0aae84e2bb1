"""A PostgreSQL cluster of the test's own, which it may kill. It does not run as root, so root hands it on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from settlement.chain import local
from tests.flows.node import wait_for


def server_binaries() -> Path | None:
    """The newest installed server's folder; ``None`` if there is none that this user can start."""
    if os.geteuid() == 0 and shutil.which("su") is None:
        return None
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass
class PostgresProcess:
    """``kill`` ends the server and its backends with SIGKILL; ``start`` recovers from its log."""

    binaries: Path
    folder: Path
    port: int = field(default_factory=local.free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def _as_user(self) -> dict[str, Any]:
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}

    def create(self) -> None:
        self.folder.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        command = [self.binaries / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as_user)

    def start(self) -> None:
        command = [self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder]
        with (self.folder.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd="/", **self._as_user
            )
        wait_for(self._answers, "PostgreSQL")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            # A backend has a process group of its own; it ends when it sees that its server is gone.
            wait_for(lambda: not self._backends(), "the end of PostgreSQL's backends")
            self._process = None

    def _backends(self) -> bool:
        return (
            subprocess.run(["pgrep", "-f", f"postgres.*{self.folder}"], capture_output=True, check=False).returncode
            == 0
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
