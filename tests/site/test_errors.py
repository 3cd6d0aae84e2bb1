"""Whatever goes wrong at an API address, the client gets the one envelope."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET

from fabstir_site import health
from fabstir_site.errors import error_response
from jobs.protocol import RequestError


async def raises(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("the database said hunter2")


def raises_in_a_thread(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("the database said hunter2")


async def refuses(request: HttpRequest) -> HttpResponse:
    raise RequestError(code="queue_full", message="Try later.", status=503, retry_after=7)


async def suspects(request: HttpRequest) -> HttpResponse:
    raise SuspiciousOperation("odd")


@csrf_exempt
async def reads(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"bytes": len(request.body)})


async def knows_better(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"own": "envelope"}, status=418)


urlpatterns = [
    path("livez", require_GET(health.livez)),
    path("raises", raises),
    path("raises-in-a-thread", raises_in_a_thread),
    path("refuses", refuses),
    path("suspects", suspects),
    path("reads", reads),
    path("knows-better", knows_better),
    path("admin/raises", raises),
]


@pytest.fixture
def client() -> Any:
    with override_settings(ROOT_URLCONF=__name__):
        yield AsyncClient(raise_request_exception=False)


def _envelope(response: Any) -> dict[str, Any]:
    assert response.headers["Content-Type"].startswith("application/json")
    envelope: dict[str, Any] = json.loads(response.content)
    assert set(envelope) == {"error_type", "message", "request_id", "details"}
    assert envelope["message"].endswith((".", response.reason_phrase))
    return envelope


@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("/nowhere", 404, "not_found"),
        ("/v1/nowhere?a=b", 404, "not_found"),
        ("/raises", 500, "internal_error"),
        ("/raises-in-a-thread", 500, "internal_error"),
        ("/suspects", 400, "invalid_request"),
        ("/refuses", 503, "queue_full"),
    ],
)
async def test_a_failure_is_the_envelope_with_a_stable_code(client: Any, address: str, status: int, code: str) -> None:
    response = await client.get(address)
    assert response.status_code == status
    assert _envelope(response)["error_type"] == code
    assert b"hunter2" not in response.content
    assert b"Traceback" not in response.content


async def test_a_wrong_method_names_the_right_one(client: Any) -> None:
    response = await client.post("/livez")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET"
    assert _envelope(response)["error_type"] == "method_not_allowed"


async def test_a_body_that_is_too_large_is_refused(client: Any) -> None:
    allowed = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    response = await client.post("/reads", data=b"x" * (allowed + 1), content_type="text/plain")
    assert response.status_code == 413
    assert _envelope(response)["error_type"] == "payload_too_large"
    response = await client.post("/reads", data=b"x" * allowed, content_type="text/plain")
    assert response.json() == {"bytes": allowed}


async def test_a_refusal_says_when_to_come_back(client: Any) -> None:
    response = await client.get("/refuses")
    assert response.headers["Retry-After"] == "7"
    assert "Retry-After" not in (await client.get("/nowhere")).headers


async def test_an_answer_that_is_json_already_stays_as_it_is(client: Any) -> None:
    response = await client.get("/knows-better")
    assert (response.status_code, response.json()) == (418, {"own": "envelope"})


async def test_admin_addresses_keep_djangos_own_pages(client: Any) -> None:
    response = await client.get("/admin/raises")
    assert response.status_code == 500
    assert response.headers["Content-Type"].startswith("text/html")
    assert b"hunter2" not in response.content


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 418, 500, 503])
def test_every_status_has_an_envelope(status: int) -> None:
    assert _envelope(error_response(status))
