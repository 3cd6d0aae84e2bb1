"""Work that is not paid yet is bounded: per job and in total, with a refusal that says when to come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.conf import LazySettings

from jobs.models import InferenceRequest
from tests.chain.world import ETH
from tests.flows.flow import PATHS, Flow, prompt_body

PRICE = 2000


def _limit(settings: LazySettings, **limits: dict[str, int]) -> None:
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, **limits)


@pytest.mark.parametrize("path", PATHS)
def test_a_job_that_owes_too_much_waits_for_its_claims_on_every_path(flow: Flow, settings: LazySettings, path: str):
    _limit(settings, exposure_per_job={"usdc": 150 * PRICE})
    job_id = flow.world.open_usdc()
    assert flow.ask(path, tokens=149, job_id=job_id)["tokens_used"] == 149
    assert flow.ask(path, tokens=1, job_id=job_id)["tokens_used"] == 1
    begun = InferenceRequest.objects.count()
    refused = flow.ask(path, tokens=1, job_id=job_id)
    told = refused.get("error", refused)
    assert told.get("error_type", told.get("code")) == "exposure_limit"
    assert "300000 base units" in told["message"] and "try again" in told["message"]
    assert InferenceRequest.objects.count() == begun, "nothing may be generated for a refused prompt"
    flow.drive()
    assert flow.claims_of(job_id) == [150]
    assert flow.ask(path, tokens=5, job_id=job_id)["tokens_used"] == 5


def test_the_refusal_over_http_says_when_to_come_back(flow: Flow, settings: LazySettings):
    _limit(settings, exposure_per_job={"usdc": 1})
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(1, job_id=job_id))
    refused = flow.post(prompt_body(1, job_id=job_id))
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json["details"] == {"job_id": str(job_id), "limit": "1"}


def test_all_jobs_of_one_kind_of_money_share_the_total(flow: Flow, settings: LazySettings):
    _limit(settings, exposure_total={"usdc": 100 * PRICE})
    first, second = flow.world.open_usdc(), flow.world.open_usdc()
    paid_in_ether = flow.world.open_eth()
    flow.ask("http_json", tokens=60, job_id=first)
    flow.ask("http_json", tokens=60, job_id=second)
    assert flow.ask("http_json", tokens=1, job_id=first)["error_type"] == "exposure_limit"
    assert flow.ask("http_json", tokens=7, job_id=paid_in_ether)["tokens_used"] == 7
    assert flow.ask("http_json", tokens=7)["tokens_used"] == 7, "work without a job owes nothing"


def test_ended_jobs_do_not_count_against_the_total(flow: Flow, settings: LazySettings):
    _limit(settings, exposure_total={"usdc": 100 * PRICE})
    first, second = flow.world.open_usdc(), flow.world.open_usdc()
    flow.ask("http_json", tokens=120, job_id=first)
    assert flow.ask("http_json", tokens=1, job_id=second)["error_type"] == "exposure_limit"
    flow.world.send(flow.world.complete(first), sender=flow.world.user)
    flow.drive()
    assert flow.session(first).state == "ended_on_chain"
    assert flow.ask("http_json", tokens=1, job_id=second)["tokens_used"] == 1


def test_without_limits_nothing_is_refused(flow: Flow):
    job_id = flow.world.open_eth(deposit=10**18, price=10**12)
    flow.ask("http_json", tokens=500, job_id=job_id)
    assert flow.ask("http_json", tokens=500, job_id=job_id)["tokens_used"] == 500
    assert (flow.session(job_id).payment_token, flow.tracked(job_id)) == (ETH, 1000)
