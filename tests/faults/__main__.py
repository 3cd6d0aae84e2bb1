"""The fault tests at full length; on PostgreSQL where ``DATABASE_URL`` is set, else on SQLite.

``matrix`` kills the worker at every boundary, and goes on where an earlier run of the same code was interrupted;
``race`` lets two workers race for 1 000 checkpoints; ``report`` writes docs/faults.md from what they found.
``point LABEL`` plays one life again; ``boundaries`` lists them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil
from tests.faults import crash_matrix, lanes, report
from tests.faults.crash_matrix import Outcome, Plan
from tests.faults.laboratory import Laboratory
from tests.faults.race import race
from tests.faults.results import Results, code_digest

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "var" / "faults"
RUN = FOUND / "matrix.json"
DATABASE = "PostgreSQL" if os.environ.get("DATABASE_URL") else "SQLite"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    whole = verbs.add_parser("matrix", help="every boundary, so many times")
    whole.add_argument("--repeats", type=int, default=20)
    whole.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="lives side by side")
    whole.add_argument("--only", default="", help="boundaries that contain this text")
    whole.add_argument("--minutes", type=float, default=float("inf"), help="end early, with what there is then")
    verbs.add_parser("boundaries", help="list them")
    point = verbs.add_parser("point", help="one life")
    point.add_argument("label")
    point.add_argument("--occurrence", type=int, default=1)
    point.add_argument("--seed", type=int, default=0)
    racing = verbs.add_parser("race", help="two workers, 1 000 checkpoints")
    racing.add_argument("--jobs", type=int, default=50)
    racing.add_argument("--claims", type=int, default=20, help="of each job")
    verbs.add_parser("report", help="write docs/faults.md")
    return parser.parse_args()


@contextmanager
def _laboratory(binary: Path, folder: Path) -> Iterator[Laboratory]:
    with local.TemporaryAnvil(binary=binary) as anvil, Laboratory(anvil.url, folder=folder) as laboratory:
        yield laboratory


def _matrix(binary: Path, folder: Path, arguments: argparse.Namespace) -> int:
    results = Results(FOUND / f"matrix-{DATABASE}-{code_digest()}.jsonl")
    if not results.exists:
        with _laboratory(binary, folder) as laboratory:
            results.begin(crash_matrix.record(laboratory))
    boundaries, known = results.boundaries(), results.outcomes()
    planned = crash_matrix.plans(boundaries, repeats=arguments.repeats, only=_that_contain(arguments.only))
    left = [plan for plan in planned if plan not in known]
    print(f"{len(boundaries)} boundaries; {len(planned)} lives, {len(left)} of them left; {results.path}", flush=True)
    run = {"results": results.path.name, "database": DATABASE, "machine": report.machine()}
    RUN.write_text(json.dumps(run | {"lanes": arguments.parallel, "repeats": arguments.repeats}))
    broken = _play(left, binary=binary, folder=folder, results=results, arguments=arguments)
    return min(1, broken + sum(1 for plan in planned if plan in known and known[plan].findings))


def _that_contain(text: str) -> crash_matrix.BoundaryChoice:
    return lambda boundaries: sorted(label for label in boundaries if text in label)


def _play(left: list[Plan], *, binary: Path, folder: Path, results: Results, arguments: argparse.Namespace) -> int:
    """Play them and keep what they give; returns how many are broken."""
    started, broken = time.monotonic(), 0
    for number, outcome in enumerate(lanes.play(left, lanes=arguments.parallel, binary=binary, folder=folder), 1):
        results.add(outcome)
        seconds = time.monotonic() - started
        if outcome.findings:
            broken += 1
            print(crash_matrix.told(outcome), flush=True)
        if number % 50 == 0:
            print(f"{number} of {len(left)} lives, {broken} broken, {seconds / number:.2f} s each", flush=True)
        if seconds > arguments.minutes * 60:
            print(f"ended early after {number} of {len(left)} lives", flush=True)
            break
    return broken


def _race(binary: Path, folder: Path, arguments: argparse.Namespace) -> int:
    with _laboratory(binary, folder) as laboratory:
        result = race(laboratory, jobs=arguments.jobs, claims_of_each=arguments.claims)
    print(
        f"{result.checkpoints} checkpoints in {result.seconds:.0f} s; {result.mined} transactions mined, "
        f"{result.proofs} proofs accepted; commits {result.commits}, sending requests {result.sends}; "
        f"{len(result.failures)} tasks raised, {len(result.findings)} findings"
    )
    print("\n".join(result.findings[:20]))
    for failure, times in Counter(result.failures).items():
        print(f"{times} times: {failure}")
    FOUND.mkdir(parents=True, exist_ok=True)
    said = dataclasses.asdict(result) | {"database": DATABASE, "machine": report.machine()}
    (FOUND / f"race-{DATABASE}.json").write_text(json.dumps(said))
    return int(bool(result.findings or result.failures or not all(result.commits)))


def _point(binary: Path, folder: Path, arguments: argparse.Namespace) -> int:
    plan = Plan(label=arguments.label, occurrence=arguments.occurrence, seed=arguments.seed)
    with _laboratory(binary, folder) as laboratory:
        outcome = crash_matrix.die_at(laboratory, plan)
    print("\n".join(outcome.findings) or f"in order after {outcome.deaths} deaths, {outcome.seconds} s")
    return int(bool(outcome.findings))


def _boundaries(binary: Path, folder: Path, arguments: argparse.Namespace) -> int:
    with _laboratory(binary, folder) as laboratory:
        for label, times in sorted(crash_matrix.record(laboratory).items()):
            print(f"{times:4} {label}")
    return 0


def _report() -> int:
    run = json.loads(RUN.read_text())
    outcomes: list[Outcome] = list(Results(FOUND / run["results"]).outcomes().values())
    races = [json.loads(file.read_text()) for file in sorted(FOUND.glob("race-*.json"), reverse=True)]
    report.write(ROOT / "docs" / "faults.md", matrix=run, outcomes=outcomes, races=races)
    return 0


def main() -> int:
    arguments = _arguments()
    if arguments.verb == "report":
        return _report()
    tools = Path(os.environ.get("FABSTIR_TOOLS_DIR") or ROOT / "var" / "tools")
    binary = fetch_anvil(tools_dir=tools, progress=print)
    folder = Path(tempfile.mkdtemp(prefix="fabstir-faults-"))
    print(f"files of broken lives stay in {folder}")
    verbs = {"matrix": _matrix, "race": _race, "point": _point, "boundaries": _boundaries}
    return verbs[arguments.verb](binary, folder, arguments)


if __name__ == "__main__":
    sys.exit(main())
