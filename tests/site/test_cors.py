"""Browser clients of any origin may use the API, and none may use the admin."""

from __future__ import annotations

import pytest
from django.test import AsyncClient

ORIGIN = {"origin": "https://app.example"}


async def test_a_preflight_of_the_api_is_answered_for_any_origin():
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = await AsyncClient().options("/v1/inference", headers={**ORIGIN, **asked})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "content-type" in answer.headers["access-control-allow-headers"]


async def test_a_refusal_carries_the_header_too():
    answer = await AsyncClient().post("/v1/inference", "{", content_type="application/json", headers=ORIGIN)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (400, "*")


@pytest.mark.django_db(transaction=True)
async def test_the_admin_is_closed_to_other_origins():
    answer = await AsyncClient().get("/admin/login/", headers=ORIGIN)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
