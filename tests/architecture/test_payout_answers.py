"""Every answer of docs/payouts.md names tests that exist."""

from __future__ import annotations

import pytest

from tests.architecture.named_tests import faults_of, rows_of

ROWS = rows_of("docs/payouts.md", r"^\| (\d+) \|(.*)\|$")


def test_there_are_twenty_answers() -> None:
    assert [number for number, _ in ROWS] == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize(("number", "row"), ROWS)
def test_an_answer_names_tests_that_exist(number: str, row: str) -> None:
    assert faults_of(row) == []
