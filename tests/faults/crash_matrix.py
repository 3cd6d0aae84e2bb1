"""The crash matrix: for every boundary of a job's life, lives in which the worker dies there.

A life: a job opens, 150 tokens and then 120 are generated and claimed, 37 follow and the session ends; its closing
claim completes the job; what was earned is withdrawn. A recording of a life without a death tells the boundaries. In
every second repeat the worker dies once more, at a random moment of the recovery. In every second pair of repeats the
worker that is started after a death first compares everything with the chain, as a worker's start asks; in the others
that message is lost and the schedule alone must do.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.faults.boundaries import Death
from tests.faults.fork_server import WorkFailed
from tests.faults.laboratory import Laboratory, Node

BoundaryChoice = Callable[[dict[str, int]], Iterable[str]]
ACTS = (150, 120, 37)
TOKENS = sum(ACTS)
# More than one life has boundaries after a death: the second death falls within the recovery.
RECOVERY_BOUNDARIES = 60
RESTARTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One life: the boundary to die at, at which of its occurrences (from 1), and what decides the rest."""

    label: str
    occurrence: int
    seed: int

    @property
    def reproduce(self) -> str:
        return f"python -m tests.faults point '{self.label}' --occurrence {self.occurrence} --seed {self.seed}"

    @property
    def deaths(self) -> list[Death]:
        first = Death(label=self.label, occurrence=self.occurrence)
        if self.seed % 2 == 0:
            return [first]
        chance = random.Random(f"{self.label}/{self.seed}")
        return [first, Death(label="", occurrence=chance.randint(1, RECOVERY_BOUNDARIES))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one life. ``findings`` is empty if everything was right."""

    plan: Plan
    deaths: int
    seconds: float
    findings: tuple[str, ...]


@dataclass
class Life:
    """One node with one job, its worker started again after each death."""

    laboratory: Laboratory
    node: Node
    deaths: list[Death]
    recovers_at_restart: bool = True
    died: int = 0
    _starting: bool = True

    def play(self) -> dict[str, int]:
        """To the end; returns the boundaries passed, counted. Raises ``WorkFailed``."""
        server, description = self.laboratory.server, self.node.description
        seen: dict[str, int] = {}
        _, session = self.laboratory.open_job(self.node, tokens=2 * TOKENS)
        for tokens in ACTS:
            server.ask("generate", node=description, session=session, tokens=tokens)
            if tokens == ACTS[-1]:
                server.ask("close", node=description, session=session)
            self.laboratory.clock.advance(2)
            seen = self._drain(seen)
        server.ask("withdraw", node=description, key="everything")
        return self._drain(seen)

    def _drain(self, seen: dict[str, int]) -> dict[str, int]:
        for _ in range(RESTARTS):
            death = self.deaths[0] if self.deaths else None
            told = None if death is None else {"label": death.label, "occurrence": death.occurrence}
            killed_by, result = self.laboratory.server.run(
                "work", node=self.node.description, starting=self._starting, death=told, seen=seen
            )
            self._starting = False
            if killed_by == 0:
                if result["failures"]:
                    raise WorkFailed(result["failures"][0])
                return dict(result["seen"])
            if killed_by != signal.SIGKILL:
                raise WorkFailed(f"the worker ended with signal {killed_by}")
            self.deaths.pop(0)
            self.died += 1
            self._starting = self.recovers_at_restart
            seen = {}
        raise WorkFailed(f"not drained after {RESTARTS} restarts")


def record(laboratory: Laboratory) -> dict[str, int]:
    """The boundaries of a life without a death, and how often each is reached."""
    node = laboratory.new_node()
    seen = Life(laboratory, node, []).play()
    findings = laboratory.findings(node, tokens={node.jobs[0]: TOKENS})
    assert findings == [], f"a life without a death is not in order: {findings}"
    laboratory.discard(node)
    return seen


def die_at(laboratory: Laboratory, plan: Plan) -> Outcome:
    """Play a planned life and look at what became of it."""
    started = time.monotonic()
    node = laboratory.new_node()
    life = Life(laboratory, node, plan.deaths, recovers_at_restart=plan.seed % 4 >= 2)
    findings: list[str] = []
    try:
        life.play()
    except WorkFailed as failure:
        findings.append(f"failed: {failure}")
    if life.died == 0:
        findings.append("the worker did not die: the boundary was not reached")
    findings += laboratory.findings(node, tokens={node.jobs[0]: TOKENS})
    if not findings:
        laboratory.discard(node)
    return Outcome(plan=plan, deaths=life.died, seconds=round(time.monotonic() - started, 2), findings=tuple(findings))


def plans(boundaries: dict[str, int], *, repeats: int, only: BoundaryChoice = sorted) -> list[Plan]:
    """Every boundary, or those that ``only`` chooses, once in each round of ``repeats``.

    The first repeat dies at the first occurrence, the others at a random one.
    """
    return [
        Plan(label=label, occurrence=_occurrence(label, seed, of=boundaries[label]), seed=seed)
        for seed in range(repeats)
        for label in only(boundaries)
    ]


def _occurrence(label: str, seed: int, *, of: int) -> int:
    return random.Random(f"{label}:{seed}").randint(1, of) if seed else 1


def matrix(laboratory: Laboratory, *, repeats: int, only: BoundaryChoice = sorted) -> list[Outcome]:
    """The lives of ``plans``, one after another."""
    return [die_at(laboratory, plan) for plan in plans(record(laboratory), repeats=repeats, only=only)]


def told(outcome: Outcome) -> str:
    """A broken life in words."""
    return f"BROKEN: {outcome.plan.reproduce}\n  " + "\n  ".join(outcome.findings)


def as_json(outcome: Outcome) -> dict[str, Any]:
    plan = outcome.plan
    return {
        "label": plan.label,
        "occurrence": plan.occurrence,
        "seed": plan.seed,
        "deaths": outcome.deaths,
        "seconds": outcome.seconds,
        "findings": list(outcome.findings),
    }


def from_json(said: dict[str, Any]) -> Outcome:
    plan = Plan(label=said["label"], occurrence=said["occurrence"], seed=said["seed"])
    return Outcome(plan=plan, deaths=said["deaths"], seconds=said["seconds"], findings=tuple(said["findings"]))
