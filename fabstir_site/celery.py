"""The Celery application and the one schedule.

Tasks take ids or nothing, are idempotent and may be lost: the row is the queue, and the schedule
finds it again. Losing the broker therefore loses nothing but time.
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")

app = Celery("fabstir")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

app.conf.task_routes = {
    "settlement.tasks.prove_checkpoints": {"queue": "proofs"},
    "settlement.tasks.*": {"queue": "chain"},
    "jobs.tasks.*": {"queue": "default"},
}

# Seconds. A message that waited longer than its period is dropped: the next one does its work.
_SCHEDULE = {
    "jobs.tasks.close_due_sessions": 2,
    "jobs.tasks.fail_abandoned_requests": 30,
    "settlement.tasks.seal_checkpoints": 1,
    "settlement.tasks.prove_checkpoints": 2,
    "settlement.tasks.submit_checkpoints": 1,
    "settlement.tasks.broadcast_transactions": 1,
    "settlement.tasks.confirm_transactions": 1,
    "settlement.tasks.index_events": 2,
    "settlement.tasks.close_sessions": 2,
    "settlement.tasks.read_contracts": 300,
}

app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": {"expires": max(seconds, 2)}}
    for name, seconds in _SCHEDULE.items()
}
