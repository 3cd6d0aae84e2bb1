"""The page of a session says who may spend its deposit."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from jobs.models import SessionBinding
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("by", "shown", "to"),
    [
        (SessionBinding.DEPOSITOR, "Depositor", factories.DEPOSITOR),
        (SessionBinding.API_KEY, "API key", "17"),
        (SessionBinding.TOKEN, "session token", "4711"),
    ],
)
def test_for_whom_a_session_was_opened_is_shown_in_words(
    admin_client: Client, by: SessionBinding, shown: str, to: str
) -> None:
    session = factories.make_session(bound_by=by, bound_to=to)
    page = admin_client.get(reverse("admin:jobs_session_change", args=[session.pk])).content.decode()
    assert "Who may spend the deposit" in page
    assert "how it was recognised, and as whom" in page
    for text in (shown, to):
        assert text in page


def test_a_session_that_is_bound_to_nobody_opens(admin_client: Client) -> None:
    session = factories.make_session()
    answer = admin_client.get(reverse("admin:jobs_session_change", args=[session.pk]))
    assert answer.status_code == 200
    assert "Who may spend the deposit" in answer.content.decode()
