"""The whole node on marketplaces of other generations: deposit, chat, claims, completion, and a ledger equal to the
chain. In process with the clock moved, and as `make demo` does it, with real processes and the wall clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from django.conf import LazySettings

from jobs.models import SessionState
from settlement import ledger, preflight
from settlement.chain import local
from settlement.chain.marketplace import MarketplaceJobStatus
from settlement.chain.marketplaces import marketplace_of
from settlement.host_chain import configured_deployment, host_chain
from settlement.models import CheckpointState, Closing, Earning, EarningKind
from tests.chain.generations import OtherWorld, mission_world, model_world
from tests.chain.world import ETH
from tests.flows.flow import Flow
from tests.flows.node import ROOT, Node, drop_node, make_node
from tests.flows.world import FlowWorld, build_flow_world

GENERATIONS = {"mission-2025-09": mission_world, "model-2026-02": model_world}
PRICE = 2000
DEPOSIT = 4_000_000

_DEMONSTRATION = """
import sys, django; django.setup()
from settlement.demonstration import run
from settlement.host_chain import host_chain
from settlement.management.commands.demo import receipt_lines
receipt = run(host_chain(), progress=print)
print(*receipt_lines(receipt), *receipt.differences, sep="\\n")
sys.exit(len(receipt.differences))
"""


@pytest.fixture(scope="module", params=list(GENERATIONS))
def flow_world(
    anvil_binary: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[FlowWorld]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        folder = tmp_path_factory.mktemp("generations")
        yield build_flow_world(anvil.url, folder=folder, build=GENERATIONS[request.param])


def world_of(flow: Flow) -> OtherWorld:
    assert isinstance(flow.world, OtherWorld)
    return flow.world


def booked(flow: Flow, job_id: int, kind: EarningKind) -> int:
    rows = Earning.objects.filter(session__job_id=job_id, kind=kind)
    return sum(row.amount for row in rows)


def assert_ledger_is_the_chain(flow: Flow, job_id: int) -> None:
    """Every figure of the job, in the ledger as on the chain, and no invariant broken."""
    job = world_of(flow).found(job_id)
    assert booked(flow, job_id, EarningKind.HOST) == job.paid_to_host
    assert booked(flow, job_id, EarningKind.TREASURY) == job.paid_to_treasury
    assert booked(flow, job_id, EarningKind.REFUND) == job.refunded
    assert job.paid_to_host + job.paid_to_treasury + job.refunded == job.deposit
    assert flow.session(job_id).tokens_claimed == job.tokens_used
    assert ledger.verify(flow.chain) == []


@pytest.mark.parametrize("coin", ["eth", "usdc"])
@pytest.mark.parametrize("rest", [0, 1, 40, 99])
def test_a_job_is_claimed_paid_at_its_end_and_booked_to_the_last_unit(flow: Flow, coin: str, rest: int) -> None:
    world = world_of(flow)
    token = ETH if coin == "eth" else world.usdc.address
    price, deposit = (10**12 + 1, 10**15 + 7) if coin == "eth" else (PRICE + 1, DEPOSIT + 7)
    before = flow.chain.marketplace.withdrawable(flow.chain.client, host=world.host, token=token)
    job_id = (world.open_eth if coin == "eth" else world.open_usdc)(deposit=deposit, price=price)
    for tokens in (130, 257):
        assert flow.ask("ws_prompt", tokens=tokens, job_id=job_id)["tokens_used"] == tokens
        # The rate rule of the slowest generation allows the whole of it.
        flow.chain_world.clock.advance(20)
        flow.drive()
    if rest:
        flow.ask("ws_prompt", tokens=rest, job_id=job_id)
        flow.drive()
    assert flow.claims_of(job_id) == [130, 257]
    assert {row.state for row in flow.session(job_id).checkpoints.all()} == {CheckpointState.CONFIRMED}
    assert booked(flow, job_id, EarningKind.HOST) == 0
    flow.close_due_sessions(grace=0)
    flow.drive()
    flow.chain_world.clock.advance(60)
    flow.drive()
    session = flow.session(job_id)
    assert (session.state, session.tokens_tracked, session.tokens_claimed) == (SessionState.COMPLETED, 387 + rest, 387)
    job = world.found(job_id)
    assert (job.status, job.tokens_used) == (MarketplaceJobStatus.COMPLETED, 387)
    gross = 387 * price
    assert (job.paid_to_host, job.paid_to_treasury) == (gross - gross // 10, gross // 10)
    after = flow.chain.marketplace.withdrawable(flow.chain.client, host=world.host, token=token)
    assert after - before == job.paid_to_host
    closing = Closing.objects.get(session=session)
    assert closing.tokens_unclaimable == rest
    assert bool(closing.unclaimable_reason) == bool(rest)
    assert {row.state for row in session.checkpoints.all()} == {CheckpointState.SETTLED}
    assert sum(row.host_amount or 0 for row in session.checkpoints.all()) == job.paid_to_host
    assert sum(row.treasury_amount or 0 for row in session.checkpoints.all()) == job.paid_to_treasury
    assert_ledger_is_the_chain(flow, job_id)


def test_a_depositor_that_ends_the_job_first_pays_what_was_claimed_by_then(flow: Flow) -> None:
    world = world_of(flow)
    job_id = world.open_usdc(deposit=DEPOSIT, price=PRICE)
    flow.ask("ws_prompt", tokens=150, job_id=job_id)
    flow.chain_world.clock.advance(20)
    flow.drive()
    flow.ask("ws_prompt", tokens=70, job_id=job_id)
    world.send(flow.chain.marketplace.complete(job_id=job_id, reference="mine"), sender=world.user)
    flow.drive()
    session = flow.session(job_id)
    assert (session.state, session.tokens_tracked, session.tokens_claimed) == (SessionState.ENDED_ON_CHAIN, 220, 150)
    assert Closing.objects.get(session=session).tokens_unclaimable == 70
    assert world.found(job_id).paid_to_host == 150 * PRICE * 9 // 10
    assert_ledger_is_the_chain(flow, job_id)


def test_a_job_that_somebody_times_out_is_booked_as_such(flow: Flow) -> None:
    world = world_of(flow)
    job_id = world.open_usdc(deposit=DEPOSIT, price=PRICE, max_duration=1000)
    flow.ask("ws_prompt", tokens=150, job_id=job_id)
    flow.chain_world.clock.advance(20)
    flow.drive()
    job = world.found(job_id)
    assert job.idle_timeout_seconds == 300
    flow.chain_world.clock.advance(301)
    world.send(flow.chain.marketplace.timeout(job_id=job_id), sender=world.stranger)
    flow.drive()
    ended = world.found(job_id)
    assert (ended.status, ended.tokens_used) == (MarketplaceJobStatus.TIMED_OUT, 150)
    assert flow.session(job_id).state == SessionState.ENDED_ON_CHAIN
    assert_ledger_is_the_chain(flow, job_id)


def test_preflight_accepts_the_generation_and_names_what_it_does_not_know(
    flow: Flow, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {check.name: check for check in preflight.run() if check.name in ("selectors", "fee", "prover")}
    assert [name for name, check in found.items() if not check.passed] == []
    assert "1000 basis points" in found["fee"].found
    known = flow.chain.deployment
    bare = replace(known, host_earnings=None, proof_system=None, node_registry=None)
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "configured_deployment", lambda: bare)
        [code] = [check for check in preflight.run() if check.name == "contract code"]
    assert code.passed
    for variable in ("CONTRACT_HOST_EARNINGS", "CONTRACT_PROOF_SYSTEM", "CONTRACT_NODE_REGISTRY"):
        assert variable in code.found
    # The other generation's functions are not in this one's code.
    other = next(name for name in GENERATIONS if name != known.generation)
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, contract_generation=other)
    host_chain.cache_clear()
    [selectors] = [check for check in preflight.run() if check.name == "selectors"]
    assert not selectors.passed
    assert "submitProofOfWork" in selectors.found
    assert "FABSTIR_CONTRACT_GENERATION" in selectors.remedy


@pytest.mark.parametrize(
    ("generation", "marketplace"),
    [
        (None, "0x1273E6358aa52Bb5B160c34Bf2e617B745e4A944"),
        ("mission-2025-09", "0x1273E6358aa52Bb5B160c34Bf2e617B745e4A944"),
        ("model-2026-02", "0xD067719Ee4c514B5735d1aC0FfB46FECf2A9adA4"),
    ],
)
def test_base_sepolia_has_a_deployment_of_each_generation(
    settings: LazySettings, generation: str | None, marketplace: str
) -> None:
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, chain_id=84532, contract_generation=generation)
    deployment = configured_deployment()
    assert deployment.job_marketplace == marketplace
    assert deployment.generation == (generation or "mission-2025-09")
    assert marketplace_of(deployment).addresses[0] == marketplace.lower()
    assert deployment.job_marketplace != deployment.proof_system


def test_a_job_that_does_not_exist_is_not_served_as_active(flow: Flow) -> None:
    """The contract reads zeros, hence "active", for any id."""
    answer = flow.ask("http_json", tokens=5, job_id=987_654)
    assert answer.get("billed") is not True
    assert flow.chain.marketplace.find_job(flow.chain.client, 987_654) is None


@pytest.fixture(params=list(GENERATIONS))
def node(node_anvil: str, request: pytest.FixtureRequest) -> Iterator[Node]:
    build: Callable[..., OtherWorld] = GENERATIONS[request.param]
    node = make_node(node_anvil, build=partial(build, dispute_window=2), seconds_per_token=0.001)
    yield node
    drop_node(node)


def test_the_demonstration_runs_on_every_generation(node: Node) -> None:
    node.start("broker", "web", "worker", "beat")
    command = [sys.executable, "-c", _DEMONSTRATION]
    done = subprocess.run(command, env=node.environ, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}\n{node.log('worker')[-5000:]}"
    verified = subprocess.run(
        [sys.executable, "manage.py", "verify_ledger"],
        env=node.environ, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout
    claims = node.rows("SELECT state FROM settlement_checkpoint")
    assert len(claims) >= 2
    assert {state for (state,) in claims} == {"settled"}
