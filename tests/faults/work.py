"""What the forked processes do: a node's database, its user's requests, its worker's schedule, and its books.

Everything goes through the names that a running node uses: the tasks of the one schedule, the configured chain, the
verbs of ``jobs``. How settlement does its work is not known here.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from celery.app.task import Task
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from fabstir_site.celery import app
from jobs import metering, sessions
from jobs.models import DeliveryPath, InferenceRequest, RequestState, Session, SessionState
from jobs.protocol import SessionReference
from jobs.spending import SpendingPolicy
from settlement import checkpoints, ledger
from settlement.host_chain import host_chain
from settlement.job_lookup import ChainJobSource
from settlement.models import Attempt, Checkpoint, Earning, Receipt, Transaction, Withdrawal
from tests.faults.boundaries import Boundaries, Death
from tests.faults.clock import SharedClock

# They look on and settle nothing. What the ledger's checks would find, ``books`` asks once, at the end of a life.
_LEFT_OUT = {f"settlement.tasks.{name}" for name in ("read_contracts", "check_ledger", "check_ledger_on_chain")}
_RECOVER = "settlement.tasks.recover"
WINDOW = 16
ROUNDS = 120
LONGEST_PAUSE_EXPONENT = 5


def enter(node: dict[str, Any]) -> SharedClock:
    """Become a process of this node: its data directory, key, chain, database and clock."""
    settings.ENVIRONMENT = replace(
        settings.ENVIRONMENT,
        data_dir=Path(node["data_dir"]),
        rpc_urls=(node["url"],),
        chain_id=node["chain_id"],
        embedded_chain=True,
        host_private_key=node["key"],
        idle_close_seconds=10**6,
    )
    connection.settings_dict["NAME"] = node["database"]
    host_chain.cache_clear()
    clock = SharedClock(Path(node["clock"]), url=node["url"])
    timezone.now = clock.now
    return clock


def migrate(*, database: str) -> None:
    connection.settings_dict["NAME"] = database
    call_command("migrate", verbosity=0)
    connection.close()


def open_job(*, node: dict[str, Any], job_id: int) -> int:
    """The session of a job, as the first prompt makes it; its row id."""
    enter(node)
    job = asyncio.run(ChainJobSource().find(job_id))
    assert job is not None
    return sessions.open_job_session(job, reference=SessionReference(job_id=job_id), policy=SpendingPolicy.OPEN).id


def generate(*, node: dict[str, Any], session: int, tokens: int, window: int = WINDOW) -> None:
    """One request of so many tokens, counted in windows as the meter does."""
    enter(node)
    request = InferenceRequest.objects.create(
        session_id=session,
        path=DeliveryPath.HTTP_JSON,
        model="tiny",
        max_tokens=tokens,
        state=RequestState.FINISHED,
        finished_at=timezone.now(),
    )
    while tokens:
        count = min(window, tokens)
        metering.record_usage(session_id=session, request_id=request.pk, count=count, path=request.path)
        tokens -= count


def close(*, node: dict[str, Any], session: int) -> None:
    enter(node)
    assert sessions.close_session(session, reason="the client ended it")


def withdraw(*, node: dict[str, Any], key: str) -> None:
    """Ask for everything that was earned, as an operator does who is not sure to have asked before."""
    enter(node)
    for _ in range(2):
        call_command("withdraw", token="usdc", force=True, key=key)


def work(
    *,
    node: dict[str, Any],
    starting: bool = False,
    death: dict[str, Any] | None = None,
    seen: dict[str, int] | None = None,
) -> dict[str, Any]:
    """The schedule, again and again until nothing moves; or to the appointed boundary.

    ``starting``: with the recovery that a worker's start asks for. ``seen`` are the boundaries that earlier lives
    have passed.
    """
    clock = enter(node)
    boundaries = Boundaries(death=Death(**death) if death else None, seen=Counter(seen or {}))
    boundaries.install()
    schedule = _schedule()
    failures: list[str] = []
    if starting:
        _run(partial(app.tasks[_RECOVER], complete=True), failures)
    quiet = rounds = 0
    while quiet < (1 if _drained() else LONGEST_PAUSE_EXPONENT) and rounds < ROUNDS:
        rounds += 1
        before = _fingerprint()
        for step in schedule:
            _run(step, failures)
        moved = _fingerprint() != before
        quiet = 0 if moved else quiet + 1
        with boundaries.off():
            clock.advance(4**quiet) if quiet else clock.follow()
    return {"seen": dict(boundaries.seen), "failures": failures, "rounds": rounds, "drained": _drained()}


def rehearse(*, node: dict[str, Any], session: int, tokens: int) -> None:
    """A life without boundaries, in this very process."""
    clock = enter(node)
    generate(node=node, session=session, tokens=tokens)
    schedule = _schedule()
    failures: list[str] = []
    for step in schedule:
        _run(step, failures)
    close(node=node, session=session)
    clock.advance(2)
    for step in (*schedule, *schedule):
        _run(step, failures)
    withdraw(node=node, key="rehearsal")
    for step in schedule:
        _run(step, failures)
    assert not failures, failures[0]
    books(node=node)
    connection.close()


def work_until(*, node: dict[str, Any], stop: str) -> dict[str, Any]:
    """The schedule without a pause until the file ``stop`` exists; somebody else moves the clock."""
    enter(node)
    boundaries = Boundaries()
    boundaries.install()
    schedule = _schedule()
    failures: list[str] = []
    while not Path(stop).exists():
        for step in schedule:
            _run(step, failures)
    return {"seen": dict(boundaries.seen), "failures": failures}


def _schedule() -> list[Callable[[], None]]:
    """The tasks of beat, in its order. Wake-ups between them are lost: the schedule alone must do."""
    Task.apply_async = lambda *arguments, **options: None
    names = [entry["task"] for entry in app.conf.beat_schedule.values()]
    return [app.tasks[name] for name in names if name not in _LEFT_OUT]


def _run(step: Callable[[], None], failures: list[str]) -> None:
    """As Celery does: a task that raises has failed, and the worker goes on."""
    try:
        step()
    except Exception:
        failures.append(traceback.format_exc())


def _drained() -> bool:
    rows = (Checkpoint.objects.unpaid(), Transaction.objects.unfinished(), Withdrawal.objects.unfinished())
    waiting = any(unfinished.exists() for unfinished in rows)
    closing = Session.objects.with_job().filter(state=SessionState.CLOSING).exists()
    unclaimed = any(row.tokens_tracked != row.tokens_claimed for row in Session.objects.with_job())
    return not waiting and not closing and not unclaimed


def _fingerprint() -> tuple[Any, ...]:
    return (
        list(Checkpoint.objects.order_by("id").values_list("id", "state", "retries")),
        list(Transaction.objects.order_by("id").values_list("id", "state", "retries", "nonce")),
        list(Session.objects.order_by("id").values_list("id", "state", "tokens_sealed", "tokens_claimed")),
        list(Withdrawal.objects.order_by("id").values_list("id", "state")),
        [model.objects.count() for model in (Attempt, Receipt, Earning)],
    )


def books(*, node: dict[str, Any]) -> dict[str, Any]:
    """What this node believes, for comparison with what the chain says."""
    enter(node)
    violations = [f"{found.invariant}: {found.message}" for found in ledger.verify(host_chain())]
    return {
        "violations": violations,
        "drained": _drained(),
        "sessions": list(Session.objects.order_by("id").values_list("job_id", "state", "tokens_tracked")),
        "checkpoints": [
            [row.session_id, row.tokens, row.state, row.proof_hash, row.reason]
            for row in Checkpoint.objects.order_by("id")
        ],
        "transactions": [
            [row.key, row.kind, row.state, row.nonce, row.reason] for row in Transaction.objects.order_by("id")
        ],
        "attempts": {row.hash: row.transaction.key for row in Attempt.objects.select_related("transaction")},
    }


def drained(*, node: dict[str, Any]) -> bool:
    enter(node)
    return _drained()


def seal_all(*, node: dict[str, Any], session: int, tokens: int) -> int:
    """Seal what is counted in ranges of so many tokens, without asking whether it is worth it; how many."""
    enter(node)
    number = 0
    while (row := Session.objects.get(pk=session)).tokens_unsealed >= tokens:
        assert checkpoints.seal(row, tokens=tokens, closing=False)
        number += 1
    return number


VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb
    for verb in (migrate, open_job, generate, close, withdraw, work, work_until, rehearse, books, drained, seal_all)
}
