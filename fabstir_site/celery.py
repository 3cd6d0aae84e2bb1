"""The Celery application and the one schedule.

Tasks take ids or nothing, are idempotent and may be lost: the row is the queue, and the schedule
finds it again. Losing the broker therefore loses nothing but time.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready
from celery.worker import state as worker_state

from fabstir_site import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")

broker.register()
app = Celery("fabstir")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

app.conf.task_routes = {
    "settlement.tasks.prove_checkpoints": {"queue": "proofs"},
    # They read much and change nothing: claims need not wait for them.
    "settlement.tasks.check_ledger": {"queue": "default"},
    "settlement.tasks.check_ledger_on_chain": {"queue": "default"},
    "settlement.tasks.*": {"queue": "chain"},
    "jobs.tasks.*": {"queue": "default"},
    "nodes.tasks.*": {"queue": "default"},
}

# Seconds. A message that waited longer than its period is dropped: the next one does its work. A step that did
# something wakes the one after it; the schedule begins the chain of steps, and goes on where a wake-up was lost.
_SCHEDULE = {
    "jobs.tasks.close_due_sessions": 5,
    "jobs.tasks.fail_abandoned_requests": 30,
    "jobs.tasks.forget_old_access": 600,
    "settlement.tasks.seal_checkpoints": 2,
    "settlement.tasks.prove_checkpoints": 4,
    "settlement.tasks.submit_checkpoints": 4,
    "settlement.tasks.broadcast_transactions": 4,
    "settlement.tasks.confirm_transactions": 2,
    "settlement.tasks.index_events": 4,
    "settlement.tasks.close_sessions": 3,
    "settlement.tasks.advance_withdrawals": 5,
    "settlement.tasks.sweep_earnings": 600,
    "settlement.tasks.watch_prover": 60,
    "settlement.tasks.recover": 120,
    "settlement.tasks.read_contracts": 300,
    "settlement.tasks.check_ledger": 300,
    "settlement.tasks.check_ledger_on_chain": 3600,
}

app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": {"expires": max(seconds, 2)}}
    for name, seconds in _SCHEDULE.items()
}

# Ids of tasks that the worker remembers as expired or done. Every task here may run twice, so it need remember
# none; Celery's own 50 000, kept for three hours, look like a leak.
_REMEMBERED_TASKS = 100


@worker_init.connect
def remember_little(**_: Any) -> None:
    """What the worker remembers of tasks that are over is bounded by a small number."""
    worker_state.revoked.maxlen = _REMEMBERED_TASKS
    worker_state.successful_requests.maxlen = _REMEMBERED_TASKS


@worker_ready.connect
def freeze_imports(**_: Any) -> None:
    """What was imported stays: counted in, it would let cycles of a quarter of its size pile up uncollected."""
    gc.collect()
    gc.freeze()


@worker_ready.connect
def recover_at_start(**_: Any) -> None:
    """A worker that starts may have been away: everything is compared with the chain once."""
    app.send_task("settlement.tasks.recover", kwargs={"complete": True})
