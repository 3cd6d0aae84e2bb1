"""A marketplace that refuses a job's first claim below its proof interval: nothing is padded, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from django.conf import LazySettings

from jobs.models import Session, SessionState
from settlement import checkpoints, ledger, recovery, sealing
from settlement.chain import local
from settlement.chain.marketplace import MarketplaceJobStatus
from settlement.host_chain import host_chain
from settlement.models import CheckpointState, Closing, Transaction, TransactionKind
from tests.chain.generations import OtherWorld, model_world
from tests.flows.flow import PATHS, Flow
from tests.flows.world import FlowWorld, build_flow_world

FIRST = 1000
PRICE = 2000
DEPOSIT = 1500 * PRICE


@pytest.fixture(scope="module")
def flow_world(anvil_binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowWorld]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield build_flow_world(anvil.url, folder=tmp_path_factory.mktemp("first"), build=model_world)


@pytest.fixture
def market(flow: Flow) -> OtherWorld:
    assert isinstance(flow.world, OtherWorld)
    return flow.world


def open_job(market: OtherWorld) -> int:
    # The longest that the contract allows between two claims.
    return market.open_usdc(deposit=DEPOSIT, price=PRICE, proof_interval=FIRST, proof_timeout_window=3600)


def generate(flow: Flow, job_id: int, tokens: int) -> None:
    assert flow.ask("ws_prompt", tokens=tokens, job_id=job_id)["tokens_used"] == tokens
    flow.chain_world.clock.advance(20)
    flow.drive()


def restart(flow: Flow) -> None:
    """What a worker does when it starts; the process's memory of the chain is gone."""
    host_chain.cache_clear()
    recovery.recover(flow.chain, complete=True)


def end(flow: Flow) -> None:
    flow.close_due_sessions(grace=0)
    flow.drive()
    flow.chain_world.clock.advance(60)
    flow.drive()


def test_what_never_reaches_the_first_claim_is_written_off_and_the_deposit_goes_back(
    flow: Flow, market: OtherWorld
) -> None:
    job_id = open_job(market)
    generate(flow, job_id, FIRST - 1)
    restart(flow)
    flow.drive()
    assert flow.claims_of(job_id) == []
    end(flow)
    session = flow.session(job_id)
    assert (session.state, session.tokens_tracked, session.tokens_claimed) == (SessionState.COMPLETED, FIRST - 1, 0)
    closing = Closing.objects.get(session=session)
    assert closing.tokens_unclaimable == FIRST - 1
    assert "1000 tokens" in closing.unclaimable_reason and "first claim" in closing.unclaimable_reason
    job = market.found(job_id)
    assert (job.status, job.refunded, job.paid_to_host) == (MarketplaceJobStatus.COMPLETED, DEPOSIT, 0)
    assert ledger.verify(flow.chain) == []
    assert not Transaction.objects.filter(kind=TransactionKind.CLAIM).exists(), "a refusal was foreseeable"


def test_the_first_claim_is_made_as_soon_as_the_marketplace_takes_it(flow: Flow, market: OtherWorld) -> None:
    job_id = open_job(market)
    generate(flow, job_id, FIRST - 1)
    assert flow.claims_of(job_id) == []
    generate(flow, job_id, 1)
    assert flow.claims_of(job_id) == [FIRST]
    assert flow.session(job_id).tokens_claimed == market.found(job_id).tokens_used == FIRST


def test_after_the_first_claim_the_usual_minimum_holds(flow: Flow, market: OtherWorld) -> None:
    job_id = open_job(market)
    generate(flow, job_id, FIRST)
    restart(flow)
    generate(flow, job_id, 150)
    restart(flow)
    generate(flow, job_id, 99)
    assert flow.claims_of(job_id) == [FIRST, 150]
    end(flow)
    session = flow.session(job_id)
    closing = Closing.objects.get(session=session)
    assert (session.state, session.tokens_claimed, closing.tokens_unclaimable) == (SessionState.COMPLETED, 1150, 99)
    assert closing.unclaimable_reason == "below the marketplace's minimum of 100 tokens for a claim"
    assert {row.state for row in session.checkpoints.all()} == {CheckpointState.SETTLED}
    assert market.found(job_id).paid_to_host == 1150 * PRICE * 9 // 10
    assert ledger.verify(flow.chain) == []


def test_a_session_whose_rows_were_lost_goes_on_with_the_usual_minimum(flow: Flow, market: OtherWorld) -> None:
    """The chain remembers that there was a claim: its first is behind this job."""
    job_id = open_job(market)
    generate(flow, job_id, FIRST)
    Session.objects.filter(job_id=job_id).update(deployment="rows that this node no longer sees")
    restart(flow)
    session = Session.objects.get(deployment=flow.chain.key, job_id=job_id)
    assert (session.tokens_inherited, session.first_claim_tokens, session.first_claim_minimum) == (FIRST, FIRST, 0)


@pytest.mark.parametrize("path", PATHS)
def test_a_job_whose_first_claim_the_host_would_not_wait_for_is_refused_before_any_work(
    flow: Flow, market: OtherWorld, settings: LazySettings, path: str
) -> None:
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, exposure_per_job={"usdc": FIRST * PRICE - 1})
    job_id = open_job(market)
    refused = flow.ask(path, tokens=5, job_id=job_id)
    told = refused.get("error", refused)
    assert told.get("error_type", told.get("code")) == "first_claim_too_large"
    assert "1000 tokens" in told["message"] and "smaller proof interval" in told["message"]
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, exposure_per_job={"usdc": FIRST * PRICE})
    assert flow.ask(path, tokens=5, job_id=job_id)["tokens_used"] == 5


def test_a_claim_that_came_before_the_first_one_waits_for_it_and_loses_nothing(flow: Flow, market: OtherWorld) -> None:
    """The operator held the first claim: the second is refused until that one is resumed."""
    job_id = open_job(market)
    assert flow.ask("ws_prompt", tokens=FIRST, job_id=job_id)["tokens_used"] == FIRST
    flow.chain_world.clock.advance(20)
    assert sealing.seal_due(flow.chain) == 1
    [first] = flow.session(job_id).checkpoints.all()
    checkpoints.pause(first, actor="test", reason="held")
    generate(flow, job_id, 150)
    second = flow.session(job_id).checkpoints.get(index=1)
    assert (second.state, second.tokens) == (CheckpointState.RETRY_AT, 150)
    assert "Low first" in second.reason
    first.refresh_from_db()
    checkpoints.resume(first, actor="test")
    flow.drive()
    flow.chain_world.clock.advance(1300)
    flow.drive()
    assert {row.state for row in flow.session(job_id).checkpoints.all()} == {CheckpointState.CONFIRMED}
    assert market.found(job_id).tokens_used == FIRST + 150
    assert ledger.verify(flow.chain) == []
