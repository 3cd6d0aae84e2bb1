"""A host that is asked too much says so at once, on every path, before it looks anything up or writes anything."""

from __future__ import annotations

import pytest

from jobs.inference.engine import EngineBusy
from jobs.models import InferenceRequest
from tests.flows.flow import PATHS, Flow, prompt_body


@pytest.fixture
def full(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setattr(flow.engine, "busy", lambda: EngineBusy("The engine's queue is full.", retry_after=7))
    return flow


@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue_is_told_before_anything_is_written(full: Flow, path: str):
    told = full.ask(path, tokens=5)
    assert told.get("error_type", told.get("error", {}).get("code")) == "service_unavailable"
    assert not full.engine.requests
    assert not InferenceRequest.objects.exists()


def test_it_says_when_to_come_back(full: Flow):
    answer = full.post(prompt_body(5))
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
