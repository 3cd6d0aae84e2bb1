"""Admin pages of sessions, requests and counted tokens."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from jobs.models import InferenceRequest, Session, SessionState, TokenUsage
from tests import factories

pytestmark = pytest.mark.django_db

READ_ONLY = ("jobs_session", "jobs_inferencerequest", "jobs_tokenusage")
MODELS = {"jobs_session": Session, "jobs_inferencerequest": InferenceRequest, "jobs_tokenusage": TokenUsage}


@pytest.mark.parametrize("page", READ_ONLY)
def test_list_and_detail_page_open(admin_client: Client, page: str) -> None:
    factories.make_world()
    row = MODELS[page].objects.first()
    assert admin_client.get(reverse(f"admin:{page}_changelist")).status_code == 200
    assert admin_client.get(reverse(f"admin:{page}_change", args=[row.pk])).status_code == 200


@pytest.mark.parametrize("page", READ_ONLY)
def test_nothing_can_be_added_changed_or_deleted(admin_client: Client, page: str) -> None:
    factories.make_world()
    row = MODELS[page].objects.first()
    before = MODELS[page].objects.count()
    assert admin_client.get(reverse(f"admin:{page}_add")).status_code == 403
    assert admin_client.post(reverse(f"admin:{page}_add"), {}).status_code == 403
    assert admin_client.post(reverse(f"admin:{page}_change", args=[row.pk]), {"state": "open"}).status_code == 403
    assert admin_client.get(reverse(f"admin:{page}_delete", args=[row.pk])).status_code == 403
    assert admin_client.post(reverse(f"admin:{page}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    admin_client.post(
        reverse(f"admin:{page}_changelist"), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert MODELS[page].objects.count() == before


def test_session_page_shows_its_checkpoints_transactions_and_money(admin_client: Client) -> None:
    session = factories.make_world()[0]
    page = admin_client.get(reverse("admin:jobs_session_change", args=[session.pk])).content.decode()
    paid = session.checkpoints.paid().first()
    assert "0.180000 + 0.020000 = 0.200000 USDC" in page
    assert "90.00 % / 10.00 %" in page
    assert paid.transaction.receipt.attempt.hash in page
    assert "2.000000 USDC" in page  # the deposit


def test_session_without_a_job_opens(admin_client: Client) -> None:
    session = factories.make_session(job_id=None)
    page = admin_client.get(reverse("admin:jobs_session_change", args=[session.pk]))
    assert page.status_code == 200
    assert "no job" in page.content.decode()


def test_job_id_is_found_exactly(admin_client: Client) -> None:
    factories.make_session(job_id=1_630_001)
    factories.make_session(job_id=163_000)
    for term in ("163000", "163000n"):
        answer = admin_client.get(reverse("admin:jobs_session_changelist"), {"q": term})
        assert [session.job_id for session in answer.context["cl"].result_list] == [163_000]


def test_odd_search_terms_find_nothing(admin_client: Client) -> None:
    factories.make_world()
    for term in ("9" * 90, "0x12", "0x" + "zz" * 20, "'; --", "٣"):
        assert admin_client.get(reverse("admin:jobs_session_changelist"), {"q": term}).status_code == 200


def test_open_sessions_can_be_closed_from_the_list(admin_client: Client) -> None:
    open_session, ended = factories.make_session(), factories.make_session(state=SessionState.COMPLETED)
    admin_client.post(
        reverse("admin:jobs_session_changelist"),
        {"action": "close_now", "_selected_action": [open_session.pk, ended.pk]},
    )
    open_session.refresh_from_db()
    ended.refresh_from_db()
    assert (open_session.state, open_session.close_reason) == (SessionState.CLOSING, "closed by the operator")
    assert ended.state == SessionState.COMPLETED


def test_closing_from_the_page_asks_first(admin_client: Client) -> None:
    session = factories.make_session()
    address = reverse("admin:jobs_session_close_this_now", args=[session.pk])
    assert admin_client.get(address).status_code == 200
    session.refresh_from_db()
    assert session.state == SessionState.OPEN
    answer = admin_client.post(address, {"_form_submitted": "True"})
    assert answer.headers["HX-Redirect"] == reverse("admin:jobs_session_change", args=[session.pk])
    session.refresh_from_db()
    assert session.state == SessionState.CLOSING


def test_staff_without_the_permission_cannot_close(client: Client, django_user_model: type) -> None:
    session = factories.make_session()
    client.force_login(django_user_model.objects.create_user("viewer", password="x" * 12, is_staff=True))
    address = reverse("admin:jobs_session_close_this_now", args=[session.pk])
    assert client.post(address, {"_form_submitted": "True"}).status_code == 403
    session.refresh_from_db()
    assert session.state == SessionState.OPEN
