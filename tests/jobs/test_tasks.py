"""Periodic work on requests and sessions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from jobs import tasks
from jobs.models import DeliveryPath, InferenceRequest, RequestState, Session, SessionState

pytestmark = pytest.mark.django_db


def running_request(*, begun: timedelta, silent: timedelta) -> InferenceRequest:
    session = Session.objects.create(last_activity_at=timezone.now() - silent)
    request = InferenceRequest.objects.create(
        session=session, path=DeliveryPath.HTTP_JSON, model="m", max_tokens=5, state=RequestState.RUNNING
    )
    InferenceRequest.objects.filter(pk=request.pk).update(created_at=timezone.now() - begun)
    return request


@pytest.mark.parametrize(
    ("begun", "silent", "state"),
    [
        (timedelta(minutes=6), timedelta(minutes=6), RequestState.FAILED),
        (timedelta(minutes=60), timedelta(seconds=1), RequestState.RUNNING),
        (timedelta(seconds=10), timedelta(minutes=60), RequestState.RUNNING),
    ],
    ids=["silent since its process died", "long but speaking", "just begun on a quiet session"],
)
def test_only_a_silent_request_is_taken_for_abandoned(begun, silent, state):
    request = running_request(begun=begun, silent=silent)
    tasks.fail_abandoned_requests()
    request.refresh_from_db()
    assert request.state == state
    assert (request.finished_at is not None) == (state == RequestState.FAILED)


def test_a_session_without_a_job_ends_when_it_is_idle():
    session = Session.objects.create(last_activity_at=timezone.now() - timedelta(days=1))
    tasks.close_due_sessions()
    session.refresh_from_db()
    assert (session.state, session.close_reason) == (SessionState.COMPLETED, "idle")
