"""The table of RPC faults as it was played: ``python -m tests.faults.rpc_table`` writes docs/rpc-faults.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.rpc_node import ROUNDS

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = _ROOT / "tests" / "faults" / "test_rpc_faults.py"
_EXPLANATION = (
    f"One transaction under each fault for {ROUNDS} rounds, the clock past every pause after each, and then without "
    "it until it has ended. `python -m tests.faults.rpc_table` plays this and writes it down."
)


def main() -> int:
    """Play the table and write it down."""
    kept = _Kept()
    status = pytest.main(["-q", "-p", "no:randomly", str(_TESTS)], plugins=[kept])
    heading = "| fault | state | reason | sender pauses | sends | budget | signed | budget | afterwards |\n"
    lines = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in kept.rows]
    text = f"# Faults of RPC nodes\n\n{_EXPLANATION}\n\n{heading}{'|---' * 9}|\n" + "\n".join(lines) + "\n"
    (_ROOT / "docs" / "rpc-faults.md").write_text(text)
    return int(status)


class _Kept:
    """What the tests say of each fault."""

    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [row for name, row in report.user_properties if name == "rpc_fault"]  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
