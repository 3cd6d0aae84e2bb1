"""What is offered for gas: floors, caps and bumps, in integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settlement.txmanager.fees import (
    MAX_GAS_LIMIT,
    Fees,
    Prices,
    affordable,
    bumped,
    gas_limit_for,
    is_outbid,
    market_fees,
    prices,
)
from settlement.txmanager.limits import Limits

GWEI = 10**9


def _limits(cap: int = 100 * GWEI, *, base: int = 10**6, tip: int = 0) -> Limits:
    return Limits(max_fee_per_gas=cap, max_cost=10**18, daily_budget=10**20, min_base_fee=base, min_priority_fee=tip)


def _fees(tip: int, fee: int) -> Fees:
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=tip)


def _market(base: int, tip: int) -> Prices:
    return Prices(base_fee=base, priority_fee=tip, head=1)


_SUMS = st.integers(0, 10**13)
_CAPS = st.integers(1, 10**13)


@st.composite
def _offers(draw: st.DrawFn) -> Fees:
    fee = draw(_CAPS)
    return _fees(draw(st.integers(0, fee)), fee)


def test_fees_survive_a_doubling_of_the_base_fee() -> None:
    assert market_fees(_market(3 * GWEI, 1 * GWEI), limits=_limits()) == _fees(1 * GWEI, 7 * GWEI)


def test_fees_never_exceed_the_cap_and_the_tip_never_the_fee() -> None:
    assert market_fees(_market(80 * GWEI, 150 * GWEI), limits=_limits()) == _fees(100 * GWEI, 100 * GWEI)


def test_an_idle_chain_still_gets_the_floors() -> None:
    """op-txmgr TestMinFees; Base never mines below its minimum base fee."""
    limits = _limits(base=5 * 10**6, tip=7)
    market = prices(base_fee=0, priority_fee=0, head=1, limits=limits)
    assert (market.base_fee, market.priority_fee) == (5 * 10**6, 7)
    assert market_fees(market, limits=limits) == _fees(7, 10**7 + 7)


@pytest.mark.parametrize(
    ("before", "market", "after"),
    [
        ((100, 1000), (50, 10), (110, 1100)),  # the market fell: a tenth more all the same
        ((100, 1000), (90, 10), (110, 1100)),
        ((1, 5), (1, 0), (2, 6)),  # at least 1 wei
        ((0, 2), (0, 0), (1, 3)),
        ((100, 2200), (120, 1050), (120, 2420)),  # tip by the market, cap by the tenth
        ((100, 2200), (150, 1500), (150, 3150)),  # both by the market
        ((100, 2200), (101, 1500), (110, 3101)),  # tip by the tenth, cap by the market
        ((1000, 1001), (1, 0), (1100, 1102)),  # rounded up
    ],
)
def test_a_bump_is_a_tenth_or_the_market(
    before: tuple[int, int], market: tuple[int, int], after: tuple[int, int]
) -> None:
    """op-txmgr TestIncreaseGasPrice; pairs of (tip, cap), the market's of (tip, base fee)."""
    tip, base = market
    offer = market_fees(_market(base, tip), limits=_limits())
    assert bumped(_fees(*before), market=offer, limits=_limits()) == _fees(*after)


def test_a_tight_loop_of_bumps_stops_at_the_cap() -> None:
    """op-txmgr TestIncreaseGasPriceLimits."""
    fees, limits, steps = _fees(10, 100), _limits(cap=500), 0
    while (higher := bumped(fees, market=_fees(0, 0), limits=limits)) is not None:
        fees, steps = higher, steps + 1
    assert steps == 16
    assert fees.max_fee_per_gas == 472
    assert bumped(fees, market=_fees(10**6, 10**6), limits=limits) is None


@given(before=_offers(), base=_SUMS, tip=_SUMS, cap=_CAPS)
def test_a_bump_raises_both_by_a_tenth_or_is_none_at_all(before: Fees, base: int, tip: int, cap: int) -> None:
    """Invariant 6."""
    limits = _limits(cap)
    after = bumped(before, market=market_fees(_market(base, tip), limits=limits), limits=limits)
    if after is None:
        needed = before.max_fee_per_gas + max(1, -(-before.max_fee_per_gas // 10))
        assert needed > cap or before.max_priority_fee_per_gas * 11 > needed * 10 - 10
    else:
        assert after.max_fee_per_gas * 10 >= before.max_fee_per_gas * 11
        assert after.max_priority_fee_per_gas * 10 >= before.max_priority_fee_per_gas * 11
        assert after.max_fee_per_gas > before.max_fee_per_gas
        assert after.max_priority_fee_per_gas > before.max_priority_fee_per_gas
        assert after.max_priority_fee_per_gas <= after.max_fee_per_gas <= cap


@given(base=_SUMS, tip=_SUMS, cap=_CAPS)
def test_fees_stay_in_bounds(base: int, tip: int, cap: int) -> None:
    fees = market_fees(_market(base, tip), limits=_limits(cap))
    assert 0 <= fees.max_priority_fee_per_gas <= fees.max_fee_per_gas <= cap


@given(base=_SUMS, tip=_SUMS)
def test_what_the_market_asks_now_is_never_outbid_by_itself(base: int, tip: int) -> None:
    market = _market(base, tip)
    assert not is_outbid(market_fees(market, limits=_limits(10**15)), market=market)


def test_an_offer_is_outbid_once_the_base_fee_eats_its_tip() -> None:
    offer = _fees(10, 210)
    assert not is_outbid(offer, market=_market(200, 10))
    assert is_outbid(offer, market=_market(201, 10))
    assert is_outbid(offer, market=_market(100, 11))


@given(
    offer=_offers(),
    gas=st.integers(21_000, MAX_GAS_LIMIT),
    l1=_SUMS,
    budget=st.integers(0, 10**20),
    base=_SUMS,
    tip=_SUMS,
)
def test_what_is_affordable_costs_no_more_than_the_budget(
    offer: Fees, gas: int, l1: int, budget: int, base: int, tip: int
) -> None:
    fees = affordable(offer, gas_limit=gas, l1_fee=l1, market=_market(base, tip), budget=budget)
    if fees is None:
        assert gas * min(base + tip, offer.max_fee_per_gas) + l1 > budget
    else:
        assert gas * fees.max_fee_per_gas + l1 <= budget
        assert min(base + tip, offer.max_fee_per_gas) <= fees.max_fee_per_gas <= offer.max_fee_per_gas
        assert fees.max_priority_fee_per_gas <= fees.max_fee_per_gas


def test_a_gas_limit_has_a_margin_and_an_end() -> None:
    assert gas_limit_for(100_000) == 125_000
    assert gas_limit_for(MAX_GAS_LIMIT) == MAX_GAS_LIMIT
