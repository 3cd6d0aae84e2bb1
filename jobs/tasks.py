"""Periodic work on sessions and requests."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from jobs import idempotency, session_authorization, sessions
from jobs.models import InferenceRequest, RequestState

# A generation records usage several times a second. One that is silent for so long was cut off with
# its process, and must not hold up the last claim of its session.
_LONGEST_SILENCE = timedelta(minutes=5)


@shared_task
def close_due_sessions() -> None:
    """Close sessions whose client is gone or whose job is about to run out."""
    environment = settings.ENVIRONMENT
    sessions.close_due_sessions(
        now=timezone.now(),
        grace=timedelta(seconds=environment.disconnect_grace_seconds),
        idle=timedelta(seconds=environment.idle_close_seconds),
    )


@shared_task
def fail_abandoned_requests() -> None:
    """Mark requests whose process died. Their counted tokens stay counted."""
    now = timezone.now()
    silent_since = now - _LONGEST_SILENCE
    InferenceRequest.objects.filter(
        state=RequestState.RUNNING, created_at__lt=silent_since, session__last_activity_at__lt=silent_since
    ).update(
        state=RequestState.FAILED,
        finish_reason="error",
        error="the process that served it ended",
        finished_at=now,
    )


@shared_task
def forget_old_access() -> None:
    """Delete expired authorisations, and answers that were kept for a day."""
    now = timezone.now()
    session_authorization.forget_expired(now=now)
    idempotency.forget_old(now=now)
