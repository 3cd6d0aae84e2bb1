"""The transaction manager against a reference model: random interleavings, and those that were found once.

``python -m tests.faults.interleavings`` plays 5 000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from tests.faults.steps import Rule, Step, Tally, explore, play

pytestmark = pytest.mark.django_db(transaction=True)
EXAMPLES = 120


@pytest.fixture(autouse=True)
def unsynced(db: None) -> Iterator[None]:
    """Nothing here survives a power cut, and nothing has to."""
    if connection.vendor != "sqlite":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=OFF")
    yield
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=FULL")


def test_whatever_happens_each_transaction_runs_once_or_not_at_all() -> None:
    tally = explore(examples=EXAMPLES, number=1)
    assert tally.examples == EXAMPLES
    assert tally.deaths > 0
    assert tally.attempts > EXAMPLES


# What chance need not play among so few: each with the arrow that it has to show.
PLAYED = {
    "mined > sent": [
        Step(Rule.ENQUEUE),
        Step(Rule.BROADCAST),
        Step(Rule.MINE, 7),
        Step(Rule.WATCH),
        Step(Rule.REORG, 4, 1),
        Step(Rule.WATCH),
    ],
    "sent > queued": [
        Step(Rule.ENQUEUE),
        Step(Rule.BROADCAST),
        Step(Rule.DROP),
        Step(Rule.FOREIGN, 3, 7),
        *[Step(Rule.MINE, 7, 7), Step(Rule.WATCH)] * 4,
    ],
    "sent > mined": [Step(Rule.ENQUEUE), Step(Rule.BROADCAST), Step(Rule.CANCEL), Step(Rule.BROADCAST)],
}


@pytest.mark.parametrize(("arrow", "steps"), PLAYED.items())
def test_an_arrow_is_really_taken(arrow: str, steps: list[Step]) -> None:
    tally = Tally()
    play(steps, tally)
    assert tally.transitions[arrow] >= 1, tally.transitions


FOUND = {
    "what was signed at the fee cap and refused as too cheap goes again when the base fee falls": [
        Step(Rule.ENQUEUE),
        Step(Rule.PRICE, 7),
        Step(Rule.POLICY, 1),
        Step(Rule.BROADCAST),
    ],
}


@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND.keys())
def test_an_interleaving_that_once_went_wrong(steps: list[Step]) -> None:
    tally = Tally()
    play(steps, tally)
    assert tally.ends["final"] >= 1
