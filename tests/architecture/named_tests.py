"""Tests that documents name, as ``path::function`` between backticks."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows_of(document: str, pattern: str) -> list[tuple[str, str]]:
    """Two parts of each line of ``document`` (below the checkout's root) that matches ``pattern``."""
    return re.findall(pattern, (ROOT / document).read_text(), re.MULTILINE)


def faults_of(row: str) -> list[str]:
    """What is wrong with the tests that ``row`` names: that there are none, or that one does not exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    missing = [f"{path} has no {name}" for path, name in named if name not in _functions(path)]
    return missing if named else [f"no test is named in: {row}"]


@cache
def _functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
