"""A host that settles: on a scripted node, or on an anvil with deployed contracts and a clock to move."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from jobs import metering, sessions
from jobs.job_source import ChainJob, JobStatus
from jobs.models import DeliveryPath, InferenceRequest, RequestState, Session
from jobs.protocol import SessionReference
from jobs.spending import SpendingPolicy
from settlement import claims, closing, earnings, following, indexer, proving, sealing
from settlement.chain import local
from settlement.chain.bindings import JobMarketplace
from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call
from settlement.chain.deployment import HOST_GENERATION, Deployment
from settlement.chain.marketplaces import marketplace_of
from settlement.chain.signer import LocalSigner
from settlement.chain.toolchain import fetch_anvil
from settlement.host_chain import HostChain, signing_rules
from settlement.models import Checkpoint, Earning, EarningKind, Transaction, TransactionKind
from settlement.txmanager import outbox
from settlement.txmanager.limits import Limits
from settlement.txmanager.manager import TransactionManager
from tests.chain.world import World, build_world
from tests.fakes.scripted_rpc import CHAIN_ID, ScriptedRpc

ROOT = Path(__file__).resolve().parents[2]
MAX_FEE = 100 * 10**9
LIMITS = Limits(max_fee_per_gas=MAX_FEE, max_cost=10**18, daily_budget=10**20)
# anvil's third account, by the phrase that every anvil uses.
_ANVIL_PHRASE = "test test test test test test test test test test test junk"
HOST_PATH = "m/44'/60'/0'/0/2"

Account.enable_unaudited_hdwallet_features()


class Clock:
    """The time that Python code sees, and with it the chain's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = timezone.now
        self._stopped: datetime | None = None
        self.offset = timedelta(0)
        monkeypatch.setattr(timezone, "now", self.now)

    def now(self) -> datetime:
        return (self._stopped or self._real()) + self.offset

    def stop(self) -> None:
        """From here on only ``offset`` moves it."""
        self._stopped = self._real()

    def set(self, moment: datetime) -> None:
        """It is ``moment``; from here on only ``offset`` moves it."""
        self._stopped = moment - self.offset


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@dataclass
class Wallet:
    """A host's key, and the marketplace whose calls it sends: enough for the transaction manager."""

    client: ChainClient
    signer: LocalSigner
    marketplace: JobMarketplace
    chain_id: int = CHAIN_ID
    limits: Limits = LIMITS

    @property
    def manager(self) -> TransactionManager:
        return TransactionManager(client=self.client, signer=self.signer, limits=self.limits)

    def limit(self, **limits: Any) -> None:
        self.limits = replace(self.limits, **limits)

    def call(self, job_id: int = 1) -> Call[None]:
        return self.marketplace.complete_session_job(job_id=job_id, conversation_cid="cid")

    def enqueue(self, key: str = "first", *, call: Call[Any] | None = None, **options: Any) -> Transaction:
        return outbox.enqueue(
            key=key,
            kind=TransactionKind.COMPLETE,
            call=call or self.call(),
            chain_id=self.chain_id,
            sender=self.signer.address,
            **options,
        )

    def broadcast(self) -> int:
        return self.manager.broadcast()

    def watch(self) -> int:
        return self.manager.watch()


def wallet_on(url: str, *, marketplace: str, account: LocalAccount, **options: Any) -> Wallet:
    deployment = Deployment(CHAIN_ID, HOST_GENERATION, to_checksum_address(marketplace))
    signer = LocalSigner(account, rules=signing_rules(deployment, chain_id=CHAIN_ID, limits=LIMITS))
    return Wallet(ChainClient((url,), chain_id=CHAIN_ID), signer, JobMarketplace(marketplace), **options)


@pytest.fixture
def peer() -> Iterator[ScriptedRpc]:
    with ScriptedRpc() as running:
        yield running


@pytest.fixture
def wallet(peer: ScriptedRpc) -> Wallet:
    return wallet_on(peer.url, marketplace="0x" + "Aa" * 20, account=Account.create())


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    tools = Path(os.environ.get("FABSTIR_TOOLS_DIR") or ROOT / "var" / "tools")
    return fetch_anvil(tools_dir=tools, progress=print)


@pytest.fixture(scope="module")
def anvil_url(anvil_binary: Path) -> Iterator[str]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield anvil.url


@dataclass
class Settling:
    """A host on an anvil: opens jobs, counts tokens, and takes the steps that the tasks take."""

    world: World
    chain: HostChain
    clock: Clock
    account: LocalAccount
    _requests: dict[int, InferenceRequest] = field(default_factory=dict)

    def pass_time(self, seconds: int) -> None:
        """For Python and for the chain."""
        self.clock.offset += timedelta(seconds=seconds)
        local.increase_time(self.world.url, seconds=seconds)

    def at(self, session: Session, *, seconds: int) -> None:
        """So long after the job's start, to the second: for Python from now on, for the chain in a block."""
        assert session.job_started_at is not None
        moment = session.job_started_at + timedelta(seconds=seconds)
        self.clock.set(moment)
        local.set_next_block_time(self.world.url, timestamp=int(moment.timestamp()))
        local.mine(self.world.url)

    def open_session(self, **terms: Any) -> Session:
        """A USDC job of 500 tokens at 0.002, and its session."""
        job_id = self.world.open_usdc(**terms)
        job = self.chain.marketplace.find_job(self.chain.client, job_id)
        assert job is not None
        opened = sessions.open_job_session(
            ChainJob(
                deployment=self.chain.key,
                chain_id=CHAIN_ID,
                job_id=job_id,
                host=job.host,
                depositor=job.requester,
                payment_token=job.payment_token,
                deposit=job.deposit,
                price_per_token=job.price_per_token,
                price_precision=job.price_precision,
                tokens_per_second=job.tokens_per_second,
                tokens_used=job.tokens_used,
                token_budget=job.token_budget,
                status=JobStatus.ACTIVE,
                started_at=job.started_at,
                expires_at=job.expires_at,
                idle_timeout_seconds=job.idle_timeout_seconds,
                chain_time=self.clock.now(),
            ),
            reference=SessionReference(job_id=job_id),
            policy=SpendingPolicy.OPEN,
        )
        return Session.objects.get(pk=opened.id)

    def generate(self, session: Session, tokens: int, *, state: str = RequestState.FINISHED) -> InferenceRequest:
        """Count tokens of one request, in windows of 16 as the meter does."""
        request = InferenceRequest.objects.create(
            session=session,
            path=DeliveryPath.HTTP_JSON,
            model="tiny",
            max_tokens=tokens,
            state=state,
            finished_at=None if state == RequestState.RUNNING else timezone.now(),
        )
        while tokens:
            count = min(16, tokens)
            metering.record_usage(session_id=session.pk, request_id=request.pk, count=count, path=request.path)
            tokens -= count
        return request

    def prepare_claims(self) -> None:
        """Seal, prove and queue, each twice: nothing may happen a second time."""
        for step in (sealing.seal_due, proving.prove_due, claims.submit_due):
            step(self.chain)
            assert step(self.chain) == 0

    def broadcast(self) -> int:
        assert self.chain.manager is not None
        return self.chain.manager.broadcast()

    def watch(self) -> int:
        assert self.chain.manager is not None
        return self.chain.manager.watch()

    def confirm(self) -> None:
        for step in (
            self.watch,
            lambda: following.follow_transactions(self.chain),
            lambda: earnings.book_gas_due(self.chain),
        ):
            step()
            step()

    def close_sessions(self) -> None:
        for _ in range(2):
            earnings.book_gas_due(self.chain)
            closing.close_due(self.chain)

    def index(self) -> int:
        indexer.index_events(self.chain)
        return indexer.index_events(self.chain)

    def settle(self, *, rounds: int = 3) -> None:
        """What the schedule does, until a claim, its confirmation and a completion are through."""
        for _ in range(rounds):
            self.pass_time(2)
            self.prepare_claims()
            self.broadcast()
            self.confirm()
            self.index()
            self.close_sessions()

    def checkpoints(self, session: Session) -> list[Checkpoint]:
        return list(session.checkpoints.order_by("index"))

    def states(self, session: Session) -> list[str]:
        return [checkpoint.state for checkpoint in self.checkpoints(session)]

    def earned(self, session: Session, kind: EarningKind) -> list[int]:
        rows = Earning.objects.live().filter(session=session, kind=kind).order_by("id")
        return [row.amount for row in rows]

    def with_confirmations(self, confirmations: int) -> Settling:
        limits = replace(self.chain.limits, confirmations=confirmations)
        return replace(self, chain=replace(self.chain, limits=limits))


@pytest.fixture
def settling_on(anvil_url: str, clock: Clock) -> Callable[..., Settling]:
    """Deploys with the given terms. Called anew by each test, so that no two share a job or a block."""

    def build(**terms: Any) -> Settling:
        world = build_world(anvil_url, **terms)
        clock.offset = timedelta(seconds=int(local.rpc(anvil_url, "evm_increaseTime", ["0x0"])))
        account = Account.from_mnemonic(_ANVIL_PHRASE, account_path=HOST_PATH)
        assert account.address == world.host
        signer = LocalSigner(account, rules=signing_rules(world.deployment, chain_id=CHAIN_ID, limits=LIMITS))
        chain = HostChain(
            client=ChainClient((anvil_url,), chain_id=CHAIN_ID),
            deployment=world.deployment,
            marketplace=marketplace_of(world.deployment),
            signer=signer,
            limits=LIMITS,
        )
        return Settling(world, chain, clock, account)

    return build


@pytest.fixture
def settling(settling_on: Callable[..., Settling]) -> Settling:
    return settling_on()
