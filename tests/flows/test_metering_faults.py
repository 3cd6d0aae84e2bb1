"""A database that goes away while tokens are generated: nothing is lost that can be kept, nobody waits forever."""

from __future__ import annotations

import pytest
from django.db import OperationalError

from fabstir_site.serving import SERVING
from jobs import metering, requests, sessions
from jobs.models import InferenceRequest
from nodes import catalog
from tests.flows.flow import PATHS, Flow, prompt_body

AWAY = OperationalError("the server closed the connection unexpectedly")


class Flaky:
    """A unit of work that fails the given numbers of its calls."""

    def __init__(self, original, *failing: int, always: bool = False) -> None:
        self.original, self.failing, self.always, self.calls = original, failing, always, 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.always or self.calls in self.failing:
            raise AWAY
        return self.original(*arguments, **named)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "_FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("path", PATHS)
def test_usage_is_recorded_once_the_database_is_back(flow: Flow, monkeypatch: pytest.MonkeyPatch, path: str):
    job_id = flow.world.open_usdc()
    monkeypatch.setattr(metering, "record_all", Flaky(metering.record_all, 1, 2, 5))
    assert flow.ask(path, tokens=57, job_id=job_id)["tokens_used"] == 57
    assert flow.tracked(job_id) == 57


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("whole", [False, True], ids=["usage only", "every write"])
def test_a_database_away_for_good_ends_the_answer_and_stops_the_engine(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, path: str, whole: bool
):
    job_id = flow.world.open_usdc()
    monkeypatch.setattr(metering, "record_all", Flaky(metering.record_all, always=True))
    if whole:
        monkeypatch.setattr(requests, "finish", Flaky(requests.finish, always=True))
    if path == "http_json":
        answer = flow.post(prompt_body(57, job_id=job_id))
        assert (answer.status, answer.json["error_type"]) == (503, "metering_unavailable")
    else:
        end = flow.ask(path, tokens=57, job_id=job_id)
        assert end["finish_reason"] == "error"
        assert end["error"].get("code", end["error"].get("error_type")) == "metering_unavailable"
    assert flow.engine.cancelled
    assert not SERVING._running
    assert InferenceRequest.objects.get().state == ("running" if whole else "failed")
    monkeypatch.undo()
    assert flow.tracked(job_id) == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("step", ["catalog", "session", "request"])
def test_a_database_away_before_the_first_token_is_a_503(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, path: str, step: str
):
    owner, name = {
        "catalog": (catalog, "resolve"),
        "session": (sessions, "open_unpaid_session"),
        "request": (requests, "begin"),
    }[step]
    monkeypatch.setattr(owner, name, Flaky(getattr(owner, name), always=True))
    if path in ("http_json", "http_sse"):
        answer = flow.post(prompt_body(5, stream=path == "http_sse"))
        assert (answer.status, answer.json["error_type"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "5"
    else:
        assert flow.ask(path, tokens=5)["error"]["code"] == "service_unavailable"
    assert flow.engine.requests == []
