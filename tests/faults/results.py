"""What the long runs have found so far, a line for each life: a run that was interrupted goes on where it ended.

The file is named for the code that it is about, so results of different code never mix.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tests.faults import crash_matrix
from tests.faults.crash_matrix import Outcome, Plan

ROOT = Path(__file__).resolve().parents[2]
_APPS = ("fabstir_site", "jobs", "nodes", "settlement")
_HARNESS = ("boundaries", "clock", "crash_matrix", "fork_server", "laboratory", "work")


def code_digest() -> str:
    """Of the applications and of what plays a life."""
    files = [file for app in _APPS for file in sorted((ROOT / app).rglob("*.py"))]
    files += [ROOT / "tests" / "faults" / f"{name}.py" for name in _HARNESS]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Results:
    """The first line holds the boundaries as recorded; every other is one life's outcome."""

    path: Path

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def begin(self, boundaries: dict[str, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"boundaries": boundaries}) + "\n")

    def add(self, outcome: Outcome) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(crash_matrix.as_json(outcome)) + "\n")

    def boundaries(self) -> dict[str, int]:
        said = json.loads(self._lines()[0])
        return {str(label): int(times) for label, times in said["boundaries"].items()}

    def outcomes(self) -> dict[Plan, Outcome]:
        found = [crash_matrix.from_json(json.loads(line)) for line in self._lines()[1:]]
        return {outcome.plan: outcome for outcome in found}

    def _lines(self) -> list[str]:
        # What was being written when the run was interrupted has no line end, and is played again.
        return self.path.read_text().split("\n")[:-1]
