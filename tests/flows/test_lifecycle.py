"""The life of a job on every marketplace generation, each time also with the node restarted between any two steps:
sockets that come and go, deposits that run out, time-outs, dispute windows, and jobs that nobody ever prompts."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.conf import LazySettings
from django.core.management import call_command

from fabstir_site.serving import SERVING
from jobs import sessions
from jobs.models import Session, SessionState
from nodes.database import in_database_thread
from settlement import ledger, recovery
from settlement.chain import local
from settlement.chain.marketplace import MarketplaceJob, MarketplaceJobStatus
from settlement.host_chain import host_chain
from settlement.models import Closing, Earning, EarningKind, Transaction, TransactionKind
from tests.chain.generations import mission_world, model_world
from tests.chain.world import build_world
from tests.flows.clients import Socket
from tests.flows.flow import PATHS, Flow, endless, held_after, prompt_body
from tests.flows.world import FlowWorld, build_flow_world

T = TypeVar("T")
WINDOW, IDLE = 30, 300
GENERATIONS: dict[str, Callable[..., Any]] = {
    "host": partial(build_world, idle_timeout=IDLE, usdc_min_deposit=1, dispute_window=WINDOW),
    "mission": mission_world,
    "model": model_world,
}
PRICE = 2000
DEPOSIT = 1_000_000
_ENDING_KINDS = (TransactionKind.COMPLETE, TransactionKind.CLOSING_CLAIM, TransactionKind.TIMEOUT)


@pytest.fixture(scope="module", params=list(GENERATIONS))
def flow_world(
    anvil_binary: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[FlowWorld]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        build = GENERATIONS[request.param]
        yield build_flow_world(anvil.url, folder=tmp_path_factory.mktemp("life"), build=build)


@dataclass
class Life:
    """One job, the node that serves it, and a clock. ``step`` is where a restart may come between."""

    flow: Flow
    restarts: bool

    def step(self) -> None:
        if not self.restarts:
            return
        self.flow.run(SERVING.shut_down())
        self.flow.use(endless())
        host_chain.cache_clear()
        recovery.recover(self.flow.chain, complete=True)

    def open(self, *, deposit: int = DEPOSIT, price: int = PRICE, **terms: int) -> int:
        return self.flow.world.open_usdc(deposit=deposit, price=price, **terms)

    def play(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.flow.run(coroutine)

    def prompt(self, job_id: int, tokens: int) -> None:
        assert self.flow.ask("ws_prompt", tokens=tokens, job_id=job_id)["tokens_used"] == tokens

    def pass_time(self, seconds: int) -> None:
        """In small steps of the schedule, as time passes for a node that runs."""
        while seconds > 0:
            moved = min(seconds, 20)
            self.flow.chain_world.clock.advance(moved)
            self.flow.close_due_sessions(grace=10**6, idle=10**6)
            self.flow.step()
            seconds -= moved

    def settle(self) -> None:
        for _ in range(3):
            self.flow.drive()
            self.flow.chain_world.clock.advance(WINDOW)
        self.flow.drive()

    def found(self, job_id: int) -> MarketplaceJob:
        job = self.flow.chain.marketplace.find_job(self.flow.chain.client, job_id)
        assert job is not None
        return job

    def ended(self, job_id: int) -> tuple[MarketplaceJob, Session, Closing]:
        """The job after its end; the ledger agrees with the chain in every figure of it."""
        job, session = self.found(job_id), self.flow.session(job_id)
        for kind, amount in (
            (EarningKind.HOST, job.paid_to_host),
            (EarningKind.TREASURY, job.paid_to_treasury),
            (EarningKind.REFUND, job.refunded),
        ):
            rows = Earning.objects.live().filter(session=session, kind=kind)
            assert sum(row.amount for row in rows) == amount, kind
        assert job.paid_to_host + job.paid_to_treasury + job.refunded == job.deposit
        assert session.tokens_claimed == job.tokens_used
        assert ledger.verify(self.flow.chain) == []
        closing = Closing.objects.get(session=session)
        assert closing.tokens_unclaimable == session.tokens_tracked - session.tokens_claimed
        return job, session, closing

    def endings(self, job_id: int) -> list[tuple[str, str]]:
        """Every transaction that meant to end the job."""
        data = f"{job_id:064x}"
        rows = Transaction.objects.filter(kind__in=_ENDING_KINDS).order_by("id")
        return [(row.kind, row.state) for row in rows if row.data[10:74] == data]


@pytest.fixture(params=[False, True], ids=["running", "restarted"])
def life(flow: Flow, request: pytest.FixtureRequest) -> Life:
    return Life(flow, restarts=request.param)


async def _bind(socket: Socket, job_id: int) -> None:
    acknowledged = (await socket.ask({"type": "session_init", "session_id": str(job_id)}))[-1]
    assert acknowledged["type"] == "session_init_ack"


def test_of_two_sockets_on_a_job_one_may_drop_in_mid_generation(life: Life) -> None:
    flow, job_id = life.flow, life.open()
    flow.use(held_after(40))

    async def play() -> int:
        async with flow.socket() as kept:
            await _bind(kept, job_id)
            async with flow.socket() as dropped:
                await _bind(dropped, job_id)
                await dropped.send({"type": "prompt", "id": "d", "request": prompt_body(200)})
                await dropped.chunks(40)
            await flow.settled()
            flow.use(endless())
            assert await in_database_thread(flow.close_due_sessions)(grace=0) == []
            frames = await kept.ask({"type": "prompt", "id": "k", "request": prompt_body(90)})
            assert frames[-1]["tokens_used"] == 90
            return (await in_database_thread(flow.session)(job_id)).tokens_tracked

    assert life.play(play()) == 130
    life.step()
    flow.drive()
    assert flow.tracked(job_id) == 130
    assert flow.session(job_id).state == SessionState.OPEN
    flow.chain_world.clock.advance(61)
    life.step()
    assert flow.close_due_sessions(grace=60) == [flow.session(job_id).pk]
    life.step()
    life.settle()
    job, session, closing = life.ended(job_id)
    assert (session.state, job.tokens_used) == (SessionState.COMPLETED, 130)
    assert closing.tokens_unclaimable == 0


def test_a_client_that_comes_back_within_the_grace_period_goes_on_with_its_job(life: Life) -> None:
    flow, job_id = life.flow, life.open()
    life.prompt(job_id, 70)
    # The presence of a socket whose process was killed.
    sessions.attach_socket(flow.session(job_id).pk, connection_id=uuid.uuid4())
    flow.chain_world.clock.advance(50)
    life.step()
    assert flow.close_due_sessions(grace=60) == []
    life.prompt(job_id, 60)
    life.step()
    flow.chain_world.clock.advance(50)
    assert flow.close_due_sessions(grace=60) == []
    flow.drive()
    assert flow.claims_of(job_id) == [130]
    flow.chain_world.clock.advance(11)
    assert flow.close_due_sessions(grace=60) == [flow.session(job_id).pk]
    refused = flow.ask("ws_prompt", tokens=5, job_id=job_id)
    assert refused["error"]["code"] == "session_closed"
    life.step()
    life.settle()
    job, session, _ = life.ended(job_id)
    assert (session.state, job.tokens_used, job.refunded) == (SessionState.COMPLETED, 130, DEPOSIT - 130 * PRICE)


@pytest.mark.parametrize("path", PATHS)
def test_a_deposit_that_runs_out_in_mid_generation_is_claimed_to_its_last_unit(life: Life, path: str) -> None:
    flow, job_id = life.flow, life.open(price=6666)
    first = flow.ask(path, tokens=60, job_id=job_id)
    assert (first["tokens_used"], first["finish_reason"]) == (60, "length")
    life.step()
    last = flow.ask(path, tokens=400, job_id=job_id)
    assert (last["tokens_used"], last["finish_reason"]) == (90, "budget")
    life.step()
    refused = flow.ask(path, tokens=1, job_id=job_id)
    told = refused.get("error", refused)
    assert told.get("error_type", told.get("code")) == "deposit_exhausted"
    assert flow.tracked(job_id) == 150
    flow.drive()
    life.step()
    flow.close_due_sessions(grace=0, idle=0)
    life.settle()
    job, session, closing = life.ended(job_id)
    assert (session.state, job.tokens_used, job.refunded) == (SessionState.COMPLETED, 150, DEPOSIT - 150 * 6666)
    assert closing.tokens_unclaimable == 0


@pytest.mark.parametrize("terms", [{}, {"max_duration": IDLE}], ids=["idle time-out", "longest duration"])
def test_tokens_are_claimed_before_a_job_can_be_timed_out_and_the_host_ends_it_itself(
    life: Life, settings: LazySettings, terms: dict[str, int]
) -> None:
    """Not by threshold or age, which are out of reach here: by the deadline alone."""
    unreachable = {"checkpoint_threshold": 10**6, "checkpoint_max_age_seconds": 10**6}
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, **unreachable)
    flow, job_id = life.flow, life.open(**terms)
    life.prompt(job_id, 120)
    life.pass_time(160)
    life.step()
    assert flow.claims_of(job_id) == [], "a deadline that is far away forces nothing"
    life.pass_time(75)
    flow.drive()
    assert flow.claims_of(job_id) == [120]
    assert flow.session(job_id).state == SessionState.OPEN, "a claim that keeps a job alive does not end it"
    life.step()
    if not terms:
        # The claim set the idle time back; nobody comes any more.
        life.pass_time(IDLE)
    else:
        life.pass_time(60)
    life.settle()
    job, session, _ = life.ended(job_id)
    assert (session.state, job.tokens_used) == (SessionState.COMPLETED, 120)
    assert job.status is MarketplaceJobStatus.COMPLETED, "somebody else could have timed it out"
    assert job.refunded == DEPOSIT - 120 * PRICE


def test_a_job_that_was_opened_and_never_prompted_is_ended_for_its_depositor(life: Life) -> None:
    """By a host that knows nothing of it: its database is empty."""
    flow, job_id = life.flow, life.open()
    assert not Session.objects.exists()
    told = io.StringIO()
    call_command("reconcile", stdout=told)
    assert f"job {job_id}: session restored, it is active on the chain and was not in this ledger" in told.getvalue()
    life.step()
    assert flow.session(job_id).state == SessionState.OPEN
    flow.chain_world.clock.advance(100)
    flow.close_due_sessions(idle=100)
    life.step()
    life.settle()
    job, session, closing = life.ended(job_id)
    assert (session.state, job.status) == (SessionState.COMPLETED, MarketplaceJobStatus.COMPLETED)
    assert (job.refunded, job.paid_to_host, closing.tokens_unclaimable) == (DEPOSIT, 0, 0)
    told = io.StringIO()
    call_command("reconcile", stdout=told)
    assert f"job {job_id}:" not in told.getvalue()


@pytest.mark.parametrize("tokens", [0, 130])
def test_the_dispute_window_is_waited_for_with_one_try_and_not_by_trying(life: Life, tokens: int) -> None:
    flow, job_id = life.flow, life.open()
    life.prompt(job_id, tokens or 1)
    flow.chain_world.clock.advance(8)
    flow.drive()
    flow.close_due_sessions(grace=0)
    for _ in range(60):
        flow.step()
        flow.chain_world.clock.advance(1)
        if not _ % 10:
            life.step()
    life.settle()
    _, session, _ = life.ended(job_id)
    assert session.state == SessionState.COMPLETED
    assert [state for _, state in life.endings(job_id)] == ["final"], "one transaction ends the job, and none failed"
    assert not Transaction.objects.filter(state__in=("failed", "reverted")).exists()


def test_a_depositor_that_ends_the_job_before_any_claim_pays_what_the_event_says(life: Life) -> None:
    """Where the marketplace charges an early end, its fee is the host's, though no token was claimed."""
    flow, job_id = life.flow, life.open(deposit=3_000_000)
    life.prompt(job_id, 50)
    life.step()
    flow.world.send(flow.chain.marketplace.complete(job_id=job_id, reference="mine"), sender=flow.world.user)
    life.step()
    life.settle()
    job, session, closing = life.ended(job_id)
    fee = 1000 * PRICE if flow.chain.deployment.generation == "model-2026-02" else 0
    assert (job.paid_to_host, job.paid_to_treasury, job.refunded) == (fee, 0, 3_000_000 - fee)
    assert (session.state, session.tokens_claimed) == (SessionState.ENDED_ON_CHAIN, 0)
    assert closing.tokens_unclaimable == 50
    assert closing.unclaimable_reason == "the job was completed on the chain before they were claimed"
    refused = flow.ask("http_json", tokens=5, job_id=job_id)
    assert refused["error_type"] == "job_ended"


def test_a_depositor_that_ends_the_job_between_two_claims_leaves_the_rest_unclaimable(life: Life) -> None:
    flow, job_id = life.flow, life.open()
    life.prompt(job_id, 120)
    flow.chain_world.clock.advance(10)
    flow.drive()
    life.step()
    life.prompt(job_id, 150)
    flow.world.send(flow.chain.marketplace.complete(job_id=job_id, reference="mine"), sender=flow.world.user)
    life.step()
    life.settle()
    job, session, closing = life.ended(job_id)
    assert (session.state, job.tokens_used) == (SessionState.ENDED_ON_CHAIN, 120)
    assert job.paid_to_host == 120 * PRICE * 9 // 10
    assert (closing.tokens_unclaimable, session.tokens_tracked) == (150, 270)


def test_a_depositor_that_ends_the_job_in_mid_generation_is_noticed_and_the_tokens_recorded(life: Life) -> None:
    flow, job_id = life.flow, life.open()
    flow.use(held_after(30))

    async def play() -> None:
        async with flow.socket() as socket:
            await _bind(socket, job_id)
            await socket.send({"type": "prompt", "id": "p", "request": prompt_body(80)})
            await socket.chunks(30)
            end = flow.chain.marketplace.complete(job_id=job_id, reference="mine")
            await asyncio.to_thread(flow.world.send, end, sender=flow.world.user)
            await in_database_thread(flow.step)()
            flow.engine.resumed.set()
            await socket.until("stream_end")
            await flow.settled()

    life.play(play())
    life.step()
    life.settle()
    _, session, closing = life.ended(job_id)
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert closing.tokens_unclaimable == session.tokens_tracked >= 30
