"""Every rule of the network's client in docs/websocket.md names tests that exist."""

from __future__ import annotations

import pytest

from tests.architecture.named_tests import faults_of, rows_of

ROWS = rows_of("docs/websocket.md", r"^\| ([SPECHA]\d+) [^|]*\|(.*)\|$")


def test_every_family_of_rules_is_there_and_numbered_without_gaps() -> None:
    families: dict[str, list[int]] = {}
    for rule, _ in ROWS:
        families.setdefault(rule[0], []).append(int(rule[1:]))
    assert "".join(families) == "SPECHA"
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in families.values())


@pytest.mark.parametrize(("rule", "row"), ROWS)
def test_a_rule_names_tests_that_exist(rule: str, row: str) -> None:
    assert faults_of(row) == []
