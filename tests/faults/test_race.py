"""Two worker processes on one database; ``python -m tests.faults race`` plays it with 1 000 checkpoints."""

from __future__ import annotations

from tests.faults.laboratory import Laboratory
from tests.faults.race import race

JOBS = 6
CLAIMS_OF_EACH = 5


def test_two_workers_send_each_checkpoint_once(laboratory: Laboratory) -> None:
    result = race(laboratory, jobs=JOBS, claims_of_each=CLAIMS_OF_EACH)
    assert result.checkpoints == JOBS * CLAIMS_OF_EACH
    assert result.findings == ()
    assert result.failures == ()
    assert all(commits > 0 for commits in result.commits), "one worker did everything"
    assert sum(result.sends) >= 1
