"""Two worker processes race for the same checkpoints; each claim may reach the chain once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from settlement.chain.bindings.structs import SessionStatus
from tests.faults.laboratory import Laboratory

TOKENS = 100
WORKERS = 2
PATIENCE_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceResult:
    """``commits`` and ``sends`` (requests that hand transactions over) by worker; ``failures`` are tasks that raised.

    ``proofs`` that the marketplace accepted and transactions ``mined`` as the chain says; ``seconds`` to drained.
    """

    jobs: int
    checkpoints: int
    proofs: int
    mined: int
    seconds: float
    commits: tuple[int, ...]
    sends: tuple[int, ...]
    failures: tuple[str, ...]
    findings: tuple[str, ...]


def race(laboratory: Laboratory, *, jobs: int, claims_of_each: int, told: Callable[[str], Any] = print) -> RaceResult:
    """Seal everything, then let the workers run until all is confirmed. Raises ``AssertionError`` in vain."""
    node = laboratory.new_node()
    tokens = TOKENS * claims_of_each
    sealed = 0
    for _ in range(jobs):
        _, session = laboratory.open_job(node, tokens=2 * tokens)
        ask = laboratory.server.ask
        ask("generate", node=node.description, session=session, tokens=tokens, window=TOKENS)
        sealed += ask("seal_all", node=node.description, session=session, tokens=TOKENS)
    told(f"{sealed} checkpoints of {jobs} jobs are sealed")
    stop = node.folder / "stop"
    servers = [laboratory.new_server() for _ in range(WORKERS)]
    started = time.monotonic()
    try:
        for server in servers:
            server.start("work_until", node=node.description, stop=str(stop))
        while not laboratory.server.ask("drained", node=node.description):
            waited = time.monotonic() - started
            assert waited < PATIENCE_SECONDS, f"not drained after {waited:.0f} s"
            laboratory.clock.advance(2)
            time.sleep(0.1)
        seconds = time.monotonic() - started
        stop.touch()
        results = [server.result()[1] for server in servers]
    finally:
        for server in servers:
            server.close()
    findings = laboratory.findings(
        node, tokens=dict.fromkeys(node.jobs, tokens), status=SessionStatus.ACTIVE, withdrawn=False
    )
    return RaceResult(
        jobs=jobs,
        checkpoints=sealed,
        proofs=laboratory.proofs(node).total(),
        mined=laboratory.mined(node),
        seconds=seconds,
        commits=tuple(_count(result, "after commit") for result in results),
        sends=tuple(_count(result, "eth_sendRawTransaction") // 2 for result in results),
        failures=tuple(failure.strip().splitlines()[-1] for result in results for failure in result["failures"]),
        findings=tuple(findings),
    )


def _count(result: dict[str, Any], text: str) -> int:
    return sum(times for label, times in result["seen"].items() if text in label)
