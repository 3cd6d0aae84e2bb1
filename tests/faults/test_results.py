"""The record of a long run: what was found is there after an interruption, and code that changed starts anew."""

from __future__ import annotations

from pathlib import Path

from tests.faults import report
from tests.faults.crash_matrix import Outcome, Plan, plans
from tests.faults.results import Results

BOUNDARIES = {"before commit in a": 3, "after commit in a": 3, "before rpc b": 1}


def _outcome(plan: Plan, *findings: str, deaths: int = 1) -> Outcome:
    return Outcome(plan=plan, deaths=deaths, seconds=1.5, findings=findings)


def test_a_run_that_was_interrupted_in_a_line_goes_on_with_that_life(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.begin(BOUNDARIES)
    planned = plans(BOUNDARIES, repeats=2)
    for plan in planned[:3]:
        results.add(_outcome(plan))
    results.path.write_text(results.path.read_text()[:-10])
    assert results.boundaries() == BOUNDARIES
    assert set(results.outcomes()) == set(planned[:2])


def test_every_boundary_has_its_repeats_before_any_has_more() -> None:
    planned = plans(BOUNDARIES, repeats=4)
    assert [plan.label for plan in planned[:3]] == sorted(BOUNDARIES)
    assert {plan.seed for plan in planned[:3]} == {0}
    assert all(1 <= plan.occurrence <= BOUNDARIES[plan.label] for plan in planned)
    assert len(set(planned)) == 12


def test_the_same_plans_come_of_the_same_boundaries() -> None:
    assert plans(BOUNDARIES, repeats=4) == plans(BOUNDARIES, repeats=4)


def test_a_broken_life_shows_in_its_row_and_in_the_sum() -> None:
    first, second, third = plans(BOUNDARIES, repeats=1)
    table = report.table([_outcome(first), _outcome(second, "a token was lost", deaths=2), _outcome(third)])
    assert f"| {second.label} | 1 | 2 | 1 | 1 |" in table
    assert "| **3 boundaries** | 3 | 4 | 1 | 1 |" in table
