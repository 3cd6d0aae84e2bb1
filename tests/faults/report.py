"""docs/faults.md, from the results that the long runs have left."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults import crash_matrix
from tests.faults.crash_matrix import Outcome


def machine() -> str:
    """What the figures are from."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()} with {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load average {os.getloadavg()[1]:.1f}"
    )


def table(outcomes: Iterable[Outcome]) -> str:
    """Boundary, repeats and outcome, as Markdown."""
    repeats, deaths, twice, broken = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for one in outcomes:
        label = one.plan.label
        repeats[label] += 1
        deaths[label] += one.deaths
        twice[label] += one.deaths > 1
        broken[label] += bool(one.findings)
    lines = ["| the worker dies | repeats | deaths | died twice | broken |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {label} | {repeats[label]} | {deaths[label]} | {twice[label]} | {broken[label]} |"
        for label in sorted(repeats, key=lambda label: (label.split(" ", 1)[1], label))
    ]
    sums = " | ".join(str(counted.total()) for counted in (repeats, deaths, twice, broken))
    lines.append(f"| **{len(repeats)} boundaries** | {sums} |")
    return "\n".join(lines) + "\n"


def write(path: Path, *, matrix: dict[str, Any], outcomes: Sequence[Outcome], races: Sequence[dict[str, Any]]) -> None:
    """``matrix`` and ``races`` say where they ran."""
    path.write_text("\n".join([*_matrix(matrix, outcomes), *_races(races)]) + "\n")


def _matrix(run: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    broken = sum(1 for one in outcomes if one.findings)
    deaths = sum(one.deaths for one in outcomes)
    counts = Counter(one.plan.label for one in outcomes)
    least = min(counts.values(), default=0)
    lines = [
        "# Fault tests at full length",
        "",
        "`make faults` writes this file; `make test` plays a sample of each.",
        "",
        "## The worker killed at every commit and every RPC",
        "",
        str(crash_matrix.__doc__).strip(),
        "",
        f"A life is broken if a token was lost or paid twice, a transaction was mined twice, in vain or unknown to the "
        f"books, a task raised, something is left undone, or `verify_ledger` finds a violation (I1 to I8). The "
        f"boundaries are recorded, not listed by hand. The worker dies by SIGKILL; the database is {run['database']}, "
        "the chain anvil.",
        "",
        f"{run['machine']}, {run['lanes']} lives side by side: {len(outcomes)} lives of "
        f"{_mean_seconds(outcomes):.1f} s each; {len(counts)} boundaries, the least repeated {least} times; "
        f"{deaths} deaths; **{broken} broken**.",
        "",
    ]
    if least < run["repeats"]:
        lines += [
            f"The aim is {run['repeats']} times: this run is not at its end. `python -m tests.faults matrix` goes on "
            "where it was interrupted, as long as the code is the same.",
            "",
        ]
    return [*lines, table(outcomes)]


def _mean_seconds(outcomes: Sequence[Outcome]) -> float:
    return sum(one.seconds for one in outcomes) / max(1, len(outcomes))


def _races(races: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## Two workers race for the same checkpoints",
        "",
        "Two processes run the whole schedule without a pause on one database, while a third moves the clock. Each "
        "checkpoint must be sent, mined and paid once, and both workers must have had a part in it.",
        "",
        "| database | checkpoints | jobs | seconds | transactions mined | proofs accepted | commits of each worker "
        "| sending requests of each worker | tasks that raised | findings |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for race in races:
        each = [", ".join(str(count) for count in race[name]) for name in ("commits", "sends")]
        lines.append(
            f"| {race['database']} | {race['checkpoints']} | {race['jobs']} | {race['seconds']:.0f} | {race['mined']} "
            f"| {race['proofs']} | {each[0]} | {each[1]} | {len(race['failures'])} | {len(race['findings'])} |"
        )
    return [*lines, "", *sorted({f"{race['database']}: {race['machine']}." for race in races})]
