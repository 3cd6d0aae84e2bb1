"""The embedded chain as a node runs it, with a state file; killed without a warning and started again."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from settlement.chain import local
from tests.flows.node import wait_for


@dataclass
class ChainProcess:
    """An anvil that keeps its port; ``kill`` loses what it has not written yet."""

    binary: Path
    folder: Path
    port: int = field(default_factory=local.free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state_file(self) -> Path:
        return self.folder / "anvil-state.json"

    def start(self) -> None:
        command = local.anvil_command(
            binary=self.binary, port=self.port, cache_dir=self.folder / "anvil", state_file=self.state_file
        )
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=local.die_with_parent
        )
        local.wait_until_answering(self.url, timeout=30)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait_until_written(self) -> None:
        """Until everything that the chain holds now is in its file."""
        for _ in range(2):  # the first write may have begun before
            self._wait_until_written_after(time.time())

    def _wait_until_written_after(self, moment: float) -> None:
        wait_for(lambda: self.state_file.exists() and self.state_file.stat().st_mtime > moment, "anvil's state file")
