"""Conservation of money on the stand-ins: what a marketplace holds is open deposits and its treasury, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3.exceptions import Web3Exception

from settlement.chain import local
from settlement.chain.marketplace import MarketplaceJob, MarketplaceJobStatus
from settlement.chain.reverts import revert_of
from tests.chain.generations import OtherWorld, mission_world, model_world
from tests.chain.world import ETH

STEPS = st.one_of(
    st.tuples(st.just("open"), st.booleans(), st.integers(7, 40_000)),
    st.tuples(st.just("claim"), st.integers(0, 5), st.integers(100, 900)),
    st.tuples(st.just("complete"), st.integers(0, 5), st.integers(0, 1)),
    st.tuples(st.just("time out"), st.integers(0, 5), st.just(0)),
)


@pytest.fixture(scope="module", params=[mission_world, model_world])
def market(anvil_url: str, request: pytest.FixtureRequest) -> Iterator[OtherWorld]:
    before = local.snapshot(anvil_url)
    yield request.param(anvil_url)
    local.revert(anvil_url, snapshot_id=before)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(STEPS, min_size=4, max_size=12))
def test_no_unit_is_lost_or_made(market: OtherWorld, history: list[tuple[str, int, int]]) -> None:
    before = local.snapshot(market.url)
    jobs: list[int] = []
    try:
        for step in [("open", 0, 13), ("open", 1, 2003), *history]:
            take(market, jobs, step)
            check(market, market.adapter.find_jobs(market.client, jobs))
    finally:
        local.revert(market.url, snapshot_id=before)


def take(market: OtherWorld, jobs: list[int], step: tuple[str, int, int]) -> None:
    verb, first, second = step
    if verb == "open":
        # A deposit that is no multiple of the price leaves a remainder, which must come back.
        price = second * 10**9 + 1 if first else second
        deposit = max(price * 700 + price // 2, 10**15 if first else 800_000)
        jobs.append((market.open_eth if first else market.open_usdc)(deposit=deposit, price=price))
        return
    job_id = jobs[first % len(jobs)]
    market.pass_time(60)
    call, sender = market.claim(job_id, second), market.host
    if verb == "complete":
        call, sender = market.adapter.complete(job_id=job_id, reference="cid"), (market.user, market.host)[second]
    elif verb == "time out":
        market.pass_time(301)
        call, sender = market.adapter.timeout(job_id=job_id), market.stranger
    try:
        market.send(call, sender=sender)
    except Web3Exception as problem:
        revert = revert_of(problem)
        assert revert is not None
        assert revert.name in {"Session not active", "Not active", "Exceeds deposit", "Over dep"}


def check(market: OtherWorld, found: list[MarketplaceJob | None]) -> None:
    jobs = [job for job in found if job is not None]
    assert len(jobs) == len(found)
    for token in (ETH, market.usdc.address):
        own = [job for job in jobs if job.payment_token == token.lower()]
        live = sum(job.deposit for job in own if job.status is MarketplaceJobStatus.ACTIVE)
        treasury = sum(job.paid_to_treasury for job in own)
        assert market.balance(market.deployment.job_marketplace, token) == live + treasury
        hosts = sum(job.paid_to_host for job in own)
        assert market.earned(token) == hosts == market.balance(market.earnings.address, token)
    for job in jobs:
        paid = job.paid_to_host + job.paid_to_treasury + job.refunded
        assert paid == (0 if job.status is MarketplaceJobStatus.ACTIVE else job.deposit)
        gross = job.tokens_used * job.price_per_token // job.price_precision
        if job.status is not MarketplaceJobStatus.ACTIVE and job.tokens_used:
            assert (job.paid_to_treasury, job.refunded) == (gross * 1000 // 10_000, job.deposit - gross)
