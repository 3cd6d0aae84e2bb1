"""The names of log lines are a closed set: each one that the source uses is listed, and each listed one is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fabstir_site.log_events import LogEvent

ROOT = Path(__file__).resolve().parents[2]


def _constants(value: ast.expr) -> Iterator[str]:
    """The names that an expression may give: of a conditional, those of both sides."""
    if isinstance(value, ast.IfExp):
        yield from _constants(value.body)
        yield from _constants(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


def _named(node: ast.AST) -> Iterator[str]:
    """Of ``{"event": …}``, and of what hands a name on as ``pause(…, event=…)``."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "event":
                yield from _constants(value)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("senders.pause"):
        for keyword in node.keywords:
            if keyword.arg == "event":
                yield from _constants(keyword.value)


def test_the_events_of_the_source_are_those_of_the_list() -> None:
    found: dict[str, str] = {}
    for app in ("fabstir_site", "settlement", "jobs", "nodes"):
        for path in (ROOT / app).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                found |= dict.fromkeys(_named(node), path.name)
    assert set(found) == set(LogEvent), found
