"""Conservation of money over random histories: deposits = host + treasury + refunds + what is still held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3.exceptions import Web3Exception

from settlement.chain import local
from settlement.chain.bindings.structs import SessionStatus
from settlement.chain.reverts import revert_of
from tests.chain.world import ETH, World, build_world

PRICES = st.integers(1, 4000).map(lambda unit: unit * 3 + 1)
STEPS = st.one_of(
    st.tuples(st.just("open"), st.booleans(), PRICES, st.integers(100, 100_000)),
    st.tuples(st.just("claim"), st.integers(0, 5), st.integers(1, 3000), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 5), st.integers(1, 3000), st.just(0)),
    st.tuples(st.just("complete"), st.integers(0, 5), st.booleans(), st.just(0)),
    st.tuples(st.just("time out"), st.integers(0, 5), st.just(0), st.just(0)),
    st.tuples(st.just("withdraw"), st.booleans(), st.just(0), st.just(0)),
)


@dataclass
class Ledger:
    """What ought to have happened, in plain arithmetic."""

    fee: int
    deposited: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    treasury: dict[str, int] = field(default_factory=dict)
    refunded: dict[str, int] = field(default_factory=dict)
    withdrawn: dict[str, int] = field(default_factory=dict)
    live: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """job → (token, price, what is left of its deposit)"""

    def add(self, account: dict[str, int], token: str, amount: int) -> None:
        account[token] = account.get(token, 0) + amount

    def claimed(self, job_id: int, tokens: int) -> None:
        token, price, left = self.live[job_id]
        fee = tokens * price * self.fee // 10_000
        self.add(self.treasury, token, fee)
        self.add(self.host, token, tokens * price - fee)
        self.live[job_id] = (token, price, left - tokens * price)

    def ended(self, job_id: int) -> None:
        token, _, left = self.live.pop(job_id)
        self.add(self.refunded, token, left)


@pytest.fixture(scope="module", params=[0, 1, 1000, 3333, 10_000])
def market(anvil_url: str, request: pytest.FixtureRequest) -> Iterator[World]:
    before = local.snapshot(anvil_url)
    yield build_world(anvil_url, fee_basis_points=request.param, usdc_min_deposit=1)
    local.revert(anvil_url, snapshot_id=before)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(STEPS, min_size=4, max_size=14))
def test_no_unit_is_lost_or_made(market: World, history: list[tuple[str, int, int, int]]) -> None:
    before = local.snapshot(market.url)
    ledger = Ledger(fee=market.read(market.marketplace.fee_basis_points()))
    try:
        for step in [("open", 0, 7, 999), ("open", 1, 7, 999), *history]:
            take(market, ledger, step)
            check(market, ledger)
    finally:
        local.revert(market.url, snapshot_id=before)


def take(world: World, ledger: Ledger, step: tuple[str, int, int, int]) -> None:
    verb, first, second, third = step
    if verb == "open":
        open_session(world, ledger, in_eth=bool(first), price=second, tokens=third)
    elif verb == "withdraw":
        withdraw(world, ledger, token=ETH if first else world.usdc.address)
    elif ledger.live:
        job_id = sorted(ledger.live)[first % len(ledger.live)]
        world.pass_time(10)
        if verb in ("claim", "close"):
            claim(world, ledger, job_id, tokens=second, closing=verb == "close")
        elif verb == "complete":
            world.send(world.complete(job_id), sender=world.user if second else world.host)
            ledger.ended(job_id)
        else:
            world.pass_time(3601)
            world.send(world.marketplace.trigger_session_timeout(job_id), sender=world.stranger)
            ledger.ended(job_id)


def open_session(world: World, ledger: Ledger, *, in_eth: bool, price: int, tokens: int) -> None:
    # A deposit that is no multiple of the price leaves a remainder, which must come back.
    price = price * 10**9 + 1 if in_eth else price + 99
    deposit = price * tokens + price // 2
    if in_eth:
        deposit = max(deposit, 10**14)
    job_id = (world.open_eth if in_eth else world.open_usdc)(deposit=deposit, price=price)
    token = ETH if in_eth else world.usdc.address
    ledger.add(ledger.deposited, token, deposit)
    ledger.live[job_id] = (token, price, deposit)


def claim(world: World, ledger: Ledger, job_id: int, *, tokens: int, closing: bool) -> None:
    _, price, left = ledger.live[job_id]
    call = (world.close if closing else world.claim)(job_id, tokens)
    payable = tokens * price <= left and (closing or tokens >= 100)
    try:
        world.send(call, sender=world.host)
    except Web3Exception as problem:
        assert not payable, revert_of(problem)
        return
    assert payable
    ledger.claimed(job_id, tokens)
    if closing:
        ledger.ended(job_id)


def withdraw(world: World, ledger: Ledger, *, token: str) -> None:
    owed = ledger.host.get(token, 0) - ledger.withdrawn.get(token, 0)
    if owed == 0:
        return
    world.send(world.earnings.withdraw_all(token), sender=world.host)
    ledger.add(ledger.withdrawn, token, owed)


def check(world: World, ledger: Ledger) -> None:
    for token in (ETH, world.usdc.address):
        live = sum(left for of, _, left in ledger.live.values() if of == token)
        host, treasury = ledger.host.get(token, 0), ledger.treasury.get(token, 0)
        withdrawn, refunded = ledger.withdrawn.get(token, 0), ledger.refunded.get(token, 0)
        assert ledger.deposited.get(token, 0) == host + treasury + refunded + live
        assert world.balance(world.marketplace.address, token) == live + treasury
        assert world.balance(world.earnings.address, token) == host - withdrawn
        assert world.read(world.marketplace.treasury_balance(token)) == treasury
        assert world.read(world.earnings.get_balance(host=world.host, token=token)) == host - withdrawn
        assert world.read(world.earnings.outstanding(token)) == host - withdrawn
    for job_id in ledger.live:
        assert world.job(job_id).status is SessionStatus.ACTIVE
