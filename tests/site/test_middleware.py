"""API clients pass by what only browsers need; browsers keep all of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from fabstir_site.urls import urlpatterns as real_urlpatterns
from jobs.protocol import RequestError

PASSWORD = "the-Lighthouse-keeper-of-1872"


@csrf_exempt
async def refuses(request: HttpRequest) -> HttpResponse:
    raise RequestError(code="queue_full", message="Try later.", status=503, retry_after=7)


@csrf_exempt
async def fails(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("the database said hunter2")


async def takes_forms(request: HttpRequest) -> HttpResponse:
    return JsonResponse({})


@csrf_exempt
async def looks_for_a_session(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"session": hasattr(request, "session"), "user": hasattr(request, "user")})


urlpatterns = [
    path("v1/refuses", refuses),
    path("v1/fails", fails),
    path("v1/takes-forms", takes_forms),
    path("v1/session", looks_for_a_session),
    path("session", looks_for_a_session),
    *real_urlpatterns,
]


@pytest.fixture
def client() -> Any:
    with override_settings(ROOT_URLCONF=__name__):
        yield AsyncClient(enforce_csrf_checks=True, raise_request_exception=False)


async def test_a_refusal_has_the_headers_of_every_answer_and_no_cookie(client: AsyncClient) -> None:
    answer = await client.post("/v1/refuses")
    assert (answer.status_code, answer.json()["error_type"]) == (503, "queue_full")
    assert answer.headers["Retry-After"] == "7"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Request-Id"]
    assert not answer.cookies


async def test_a_failure_is_an_envelope_without_its_secret(client: AsyncClient) -> None:
    answer = await client.post("/v1/fails")
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal_error")
    assert "hunter2" not in answer.content.decode()


async def test_no_session_is_made_for_api_clients(client: AsyncClient) -> None:
    assert (await client.get("/v1/session")).json() == {"session": False, "user": False}
    assert (await client.get("/session")).json() == {"session": True, "user": True}


@pytest.mark.parametrize(("root", "has_session"), [("/v1", True), ("/x", False)])
async def test_what_a_client_says_stands_before_an_address_does_not_change_whose_it_is(
    client: AsyncClient, root: str, has_session: bool
) -> None:
    # daphne takes it from a header of the request: Daphne-Root-Path.
    rooted = AsyncClient(root_path=root)
    answer = await rooted.get("/v1/session" if has_session else "/x/v1/session")
    assert answer.json() == {"session": has_session, "user": has_session}


async def test_forged_requests_are_refused_wherever_they_are_not_harmless(client: AsyncClient) -> None:
    assert (await client.post("/v1/takes-forms")).status_code == 403
    assert (await client.post("/admin/login/", {"username": "a", "password": "b"})).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_a_browser_logs_in_and_is_told(client: AsyncClient) -> None:

    get_user_model().objects.create_superuser("keeper", "k@example.org", PASSWORD)

    async def play() -> tuple[int, int, str]:
        page = await client.get("/admin/login/")
        token = page.cookies["csrftoken"].value
        form = {"username": "keeper", "password": PASSWORD, "next": "/admin/", "csrfmiddlewaretoken": token}
        logged_in = await client.post("/admin/login/", form)
        changed = await client.get("/admin/password_change/")
        return logged_in.status_code, changed.status_code, changed.content.decode()

    status, page, text = asyncio.run(play())
    assert (status, page) == (302, 200)
    assert "keeper" in text


async def test_an_answer_to_an_api_client_changes_threads_only_where_django_itself_does(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:

    original, steps = SyncToAsync.__call__, []

    async def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        steps.append(getattr(self.func, "__qualname__", str(self.func)))
        return await original(self, *arguments, **named)

    monkeypatch.setattr(SyncToAsync, "__call__", counted)
    assert (await client.post("/v1/refuses")).status_code == 503
    assert not [step for step in steps if "process_" in step], steps
