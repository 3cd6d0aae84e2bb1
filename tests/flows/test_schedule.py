"""The worker's schedule: each task exists, does nothing where there is nothing, and waits where the chain is away."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from celery import Task
from django.conf import LazySettings
from django.db.models import F

from fabstir_site.celery import app
from jobs.models import Session
from settlement import tasks
from settlement.chain import local
from settlement.host_chain import host_chain
from settlement.models import Checkpoint, Earning, LedgerCheck, Transaction
from tests.flows.flow import Flow, prompt_body
from tests.flows.node import Node, drop_node, frames_until, make_node, wait_for

NAMES = sorted(app.conf.beat_schedule)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The wake-ups that tasks send to others, instead of a broker."""
    names: list[str] = []
    monkeypatch.setattr(Task, "apply_async", lambda task, *_, **__: names.append(task.name))
    return names


def scheduled(name: str) -> Task:
    app.loader.import_default_modules()
    return app.tasks[name]


def test_the_schedule_names_every_periodic_task_of_settlement() -> None:
    app.loader.import_default_modules()
    known = {name for name in app.tasks if name.startswith(("settlement.", "jobs."))}
    assert known == set(NAMES), "a task that nobody calls, or a call of no task"


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduled_task_finds_nothing_to_do_in_an_empty_ledger(flow: Flow, sent: list[str], name: str) -> None:
    scheduled(name)()
    assert sent == []
    assert not any(model.objects.exists() for model in (Checkpoint, Transaction, Earning))
    # What recovery finds are the jobs that other tests opened on this chain.
    assert not Session.objects.exclude(tokens_tracked=F("tokens_inherited")).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduled_task_waits_for_a_chain_that_is_away(
    flow: Flow, sent: list[str], settings: LazySettings, name: str
) -> None:
    flow.post(prompt_body(150, job_id=flow.world.open_usdc()))
    nowhere = f"http://127.0.0.1:{local.free_port()}"
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, rpc_urls=(nowhere,))
    host_chain.cache_clear()
    scheduled(name)()
    assert sent == []
    assert flow.session(Session.objects.get().job_id or 0).tokens_tracked == 150


def test_a_marketplace_without_code_sends_nothing_loses_nothing_and_is_named(
    flow: Flow, sent: list[str], settings: LazySettings, caplog: pytest.LogCaptureFixture
) -> None:
    flow.post(prompt_body(150, job_id=flow.world.open_usdc()))
    nothing = "0x" + "e0" * 20
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, contract_overrides={"JobMarketplace": nothing})
    host_chain.cache_clear()
    # As if the address had been changed under a ledger that has work.
    Session.objects.update(deployment=flow.chain.key)
    for _ in range(3):
        tasks.seal_checkpoints()
    assert sent == []
    assert not Transaction.objects.exists()
    assert "Run manage.py preflight" in caplog.text
    assert Session.objects.get().tokens_tracked == 150


def test_the_ledger_is_checked_by_the_schedule_and_the_outcome_kept(flow: Flow) -> None:
    flow.post(prompt_body(150, job_id=flow.world.open_usdc()))
    flow.drive()
    tasks.check_ledger()
    tasks.check_ledger_on_chain()
    checks = {check.part: sum(check.counts.values()) for check in LedgerCheck.objects.all()}
    assert checks == {"database": 0, "chain": 0}


def test_one_wake_up_sends_on_what_the_transactions_before_it_make_room_for(
    flow: Flow, sent: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one transaction in flight at a time, and a chain that mines at once."""
    limits = replace(flow.chain.limits, max_in_flight=1)
    chain = replace(flow.chain, limits=limits)
    monkeypatch.setattr(tasks, "host_chain", lambda: chain)
    for _ in range(4):
        flow.post(prompt_body(100, job_id=flow.world.open_usdc()))
    flow.chain_world.clock.advance(2)
    for task in (tasks.seal_checkpoints, tasks.prove_checkpoints, tasks.submit_checkpoints):
        task()
    with caplog.at_level(logging.WARNING):
        tasks.broadcast_transactions()
    assert set(Transaction.objects.values_list("state", flat=True)) <= {"mined", "final"}
    assert Transaction.objects.count() == 4
    assert caplog.records == []


@pytest.fixture
def node(node_anvil: str) -> Iterator[Node]:
    node = make_node(node_anvil, seconds_per_token=0.0)
    yield node
    drop_node(node)


def test_a_worker_that_starts_recovers_what_happened_while_it_was_away(node: Node) -> None:
    """Without beat: only the worker's own start can have done it."""
    node.start("broker", "web")
    market = node.world.world
    ended, unseen = market.open_usdc(), market.open_usdc()
    with node.socket() as socket:
        socket.send(json.dumps({"type": "inference", "request": prompt_body(150, job_id=ended)}))
        frames_until(socket, "stream_end")
    assert node.tracked() == 150
    market.send(market.complete(ended), sender=market.user)
    node.start("worker")
    states = f"SELECT job_id, state FROM jobs_session WHERE job_id IN ('{ended:078d}', '{unseen:078d}') ORDER BY id"
    wait_for(lambda: len(node.rows(states)) == 2, lambda: f"the unseen job:\n{node.log('worker')[-3000:]}")
    wait_for(lambda: node.rows(states)[0][1] == "ended_on_chain", "the end that the depositor made")
    assert node.rows(states)[1][1] == "open"
    [lost] = node.rows("SELECT tokens_unclaimable, unclaimable_reason FROM settlement_closing")
    assert lost[0] == 150 and "before they were claimed" in lost[1]
