"""Blocks that vanish, pools that forget and keys that are used elsewhere, at moments that a seed decides.

Whatever happens between two steps of the tasks, in the end the chain holds every token once, every
transaction is final once, and the ledger has nothing to object to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from eth_account import Account

from jobs import sessions
from jobs.models import Session, SessionState
from settlement import ledger
from settlement.chain import local
from settlement.chain.client import ChainClient
from settlement.chain.marketplaces import marketplace_of
from settlement.chain.signer import LocalSigner
from settlement.host_chain import HostChain, signing_rules
from settlement.models import CheckpointState, EarningKind, Receipt, Transaction, TransactionState
from tests.chain.world import build_world
from tests.settlement.conftest import HOST_PATH, LIMITS, Clock, Settling

pytestmark = pytest.mark.django_db

_PHRASE = "test test test test test test test test test test test junk"
_PRICE = 2000
JOBS = 3


@pytest.fixture(scope="module")
def anvil_url(anvil_binary: object) -> Iterator[str]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:  # type: ignore[arg-type]
        yield anvil.url


@pytest.fixture
def settling(anvil_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settling]:
    """A host whose chain mines when it is told to."""
    clock = Clock(monkeypatch)
    world = build_world(anvil_url)
    clock.offset = timedelta(seconds=int(local.rpc(anvil_url, "evm_increaseTime", ["0x0"])))
    account = Account.from_mnemonic(_PHRASE, account_path=HOST_PATH)
    chain = HostChain(
        client=ChainClient((anvil_url,), chain_id=local.CHAIN_ID),
        deployment=world.deployment,
        marketplace=marketplace_of(world.deployment),
        signer=LocalSigner(account, rules=signing_rules(world.deployment, chain_id=local.CHAIN_ID, limits=LIMITS)),
        limits=LIMITS,
    )
    yield Settling(world, chain, clock, account)
    local.rpc(anvil_url, "anvil_dropAllTransactions")
    local.set_automine(anvil_url, enabled=True)


class Turmoil:
    """Steps of the tasks on a chain without order, with what may go wrong between them."""

    def __init__(self, settling: Settling, *, seed: int, confirmations: int) -> None:
        self.settling = settling.with_confirmations(confirmations)
        self.random = random.Random(seed)
        self.url = settling.world.url
        self.happened: list[str] = []
        self.sessions = [self.settling.open_session() for _ in range(JOBS)]
        # What vanishes must not take the jobs themselves along.
        local.mine(self.url, blocks=12)
        self.oldest = self.head() - 10
        local.set_automine(self.url, enabled=False)

    def head(self) -> int:
        return int(local.rpc(self.url, "eth_blockNumber"), 16)

    def reorganise(self) -> None:
        depth = self.random.randint(1, min(10, self.head() - self.oldest))
        local.reorganise(self.url, depth=depth)
        self.happened.append(f"reorg of {depth}")

    def forget(self) -> None:
        """Any transaction of the pool, the middle one of five as well as the first."""
        pool = local.rpc(self.url, "txpool_content")["pending"]
        names = sorted(one["hash"] for by_nonce in pool.values() for one in by_nonce.values())
        if names:
            local.rpc(self.url, "anvil_dropTransaction", [self.random.choice(names)])
            self.happened.append("dropped")

    def steal(self) -> None:
        """Another wallet with the host's key uses the next nonce, for more than this host offers."""
        account = self.settling.account
        nonce = int(local.rpc(self.url, "eth_getTransactionCount", [account.address, "latest"]), 16)
        pool = local.rpc(self.url, "txpool_content")["pending"].get(account.address, {})
        if str(nonce) in pool:
            local.rpc(self.url, "anvil_dropTransaction", [pool[str(nonce)]["hash"]])
        fees = {"gas": 21_000, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**10}
        signed = account.sign_transaction(
            {"chainId": local.CHAIN_ID, "nonce": nonce, "to": account.address, "value": 1, **fees}
        )
        local.rpc(self.url, "eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()])
        local.mine(self.url)
        self.happened.append(f"nonce {nonce} stolen")

    def step(self) -> None:
        """Every task once, with a block where the seed says so."""
        settling = self.settling
        settling.clock.offset += timedelta(seconds=31)
        local.rpc(self.url, "evm_increaseTime", [hex(31)])
        settling.prepare_claims()
        settling.broadcast()
        if self.random.random() < 0.8:
            local.mine(self.url, blocks=self.random.randint(1, 2))
        settling.confirm()
        settling.index()
        settling.close_sessions()

    def settle(self, *, steps: int = 40) -> None:
        """Nothing goes wrong any more, and the sessions end."""
        for session in self.sessions:
            sessions.close_session(session.pk, reason="idle")
        for _ in range(steps):
            self.step()
            local.mine(self.url, blocks=2)
            if self.is_settled():
                return

    def is_settled(self) -> bool:
        ended = [Session.objects.get(pk=session.pk).state for session in self.sessions]
        return set(ended) == {SessionState.COMPLETED} and not Transaction.objects.unfinished().exists()

    def findings(self) -> list[str]:
        """What is wrong at the end."""
        found = [f"{each.invariant}: {each.message}" for each in ledger.verify(self.settling.chain)]
        for session in self.sessions:
            session.refresh_from_db()
            found += self._of(session)
        return found + [
            f"{row} is {row.state}: {row.reason}" for row in Transaction.objects.all() if not _is_in_order(row)
        ]

    def _of(self, session: Session) -> list[str]:
        assert session.job_id is not None
        used = self.settling.world.job(session.job_id).tokens_used
        earned = sum(self.settling.earned(session, EarningKind.HOST))
        treasury = sum(self.settling.earned(session, EarningKind.TREASURY))
        told = [
            ("states", set(self.settling.states(session)), {CheckpointState.SETTLED}),
            ("tokens on the chain", used, session.tokens_tracked),
            ("tokens claimed", session.tokens_claimed, session.tokens_tracked),
            ("host and treasury", earned + treasury, used * _PRICE),
        ]
        return [f"job {session.job_id}: {what} {is_}, not {ought}" for what, is_, ought in told if is_ != ought]


def _is_in_order(row: Transaction) -> bool:
    """Final once; or refused for what a reorg changed under it, which is repaired by another transaction.

    Blocks that vanished had been between two claims of a job that now share one, or had paid for the first
    use of storage that a claim's estimate found in use.
    """
    if row.revert in ("ClaimTooFast", "OutOfGas"):
        return row.state in (TransactionState.FAILED, TransactionState.REVERTED)
    return row.state == TransactionState.FINAL and Receipt.objects.filter(transaction=row).count() == 1


def _play(turmoil: Turmoil, *, troubles: list[str], rounds: int = 10) -> None:
    for number in range(rounds):
        for session in turmoil.sessions:
            if number < 3 or turmoil.random.random() < 0.2:
                session.refresh_from_db()
                turmoil.settling.generate(session, min(110, 500 - session.tokens_tracked))
        turmoil.step()
        if turmoil.random.random() < 0.6:
            getattr(turmoil, turmoil.random.choice(troubles))()
    for session in turmoil.sessions:
        session.refresh_from_db()
        # Every token sold: what is left over, however little, is due.
        turmoil.settling.generate(session, 500 - session.tokens_tracked)
    turmoil.settle()


@pytest.mark.parametrize("confirmations", [12, 1], ids=["shallower than finality", "below finality"])
@pytest.mark.parametrize("seed", range(3))
def test_reorgs_at_any_moment_lose_and_repeat_nothing(settling: Settling, seed: int, confirmations: int) -> None:
    turmoil = Turmoil(settling, seed=seed, confirmations=confirmations)
    _play(turmoil, troubles=["reorganise"])
    assert any(one.startswith("reorg") for one in turmoil.happened)
    assert "\n".join(turmoil.findings()) == "", turmoil.happened


@pytest.mark.parametrize("confirmations", [12, 1], ids=["shallower than finality", "below finality"])
@pytest.mark.parametrize("seed", range(10, 13))
def test_reorgs_thefts_and_lost_transactions_together_lose_and_repeat_nothing(
    settling: Settling, seed: int, confirmations: int
) -> None:
    turmoil = Turmoil(settling, seed=seed, confirmations=confirmations)
    _play(turmoil, troubles=["reorganise", "forget", "steal"])
    assert len(set(turmoil.happened)) > 1
    assert "\n".join(turmoil.findings()) == "", turmoil.happened


@pytest.mark.parametrize("moment", ["before it is sent", "while in flight", "mined and then reorganised away"])
def test_a_nonce_that_another_wallet_takes_costs_no_claim(settling: Settling, moment: str) -> None:
    turmoil = Turmoil(replace(settling), seed=1, confirmations=3)
    for session in turmoil.sessions:
        turmoil.settling.generate(session, 500)
    local.increase_time(turmoil.url, seconds=60)
    turmoil.settling.clock.offset += timedelta(seconds=60)
    turmoil.settling.prepare_claims()
    if moment == "before it is sent":
        turmoil.steal()
    assert turmoil.settling.broadcast() == JOBS
    if moment == "while in flight":
        turmoil.steal()
    if moment == "mined and then reorganised away":
        local.mine(turmoil.url)
        turmoil.settling.confirm()
        local.reorganise(turmoil.url, depth=1)
        turmoil.steal()
    turmoil.settle()
    assert "\n".join(turmoil.findings()) == "", turmoil.happened
