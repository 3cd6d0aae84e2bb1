"""When to claim: thresholds, age and the marketplace's rate, as tables and properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settlement import policy
from settlement.chain.marketplace import Capabilities, Terms
from settlement.pauses import LONGEST_PAUSE, pause
from settlement.policy import Seal, TokenValue

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
WITH_CLOSING = Capabilities(
    pays_on_claim=True, closing_claim=True, signature_proof=False, minimum_claim=100, price_precision=1
)
WITHOUT_CLOSING = Capabilities(
    pays_on_claim=True, closing_claim=False, signature_proof=False, minimum_claim=100, price_precision=1
)


def _terms(rate: int = 1000) -> Terms:
    return Terms(
        fee_basis_points=1000,
        dispute_window=timedelta(0),
        tokens_per_second=rate,
        treasury="0x" + "00" * 20,
        minimum_claim=100,
    )


def _seal(
    tokens: int,
    *,
    threshold: int = 100,
    age: float = 1,
    since_claim: float = 3600,
    ending: bool = False,
    rate: int = 1000,
    capabilities: Capabilities = WITH_CLOSING,
    job_rate: int | None = None,
    forced_in: float | None = None,
    disputed_for: float | None = None,
    value: int | None = None,
    cost: int | None = None,
    ratio: int = 2,
    first: int = 0,
) -> Seal | None:
    unsealed = policy.Unsealed(
        tokens=tokens,
        oldest_at=NOW - timedelta(seconds=age),
        last_claim_at=NOW - timedelta(seconds=since_claim),
        ending=ending,
        tokens_per_second=job_rate,
        first_claim_tokens=first,
        forced_at=None if forced_in is None else NOW + timedelta(seconds=forced_in),
        dispute_until=None if disputed_for is None else NOW + timedelta(seconds=disputed_for),
        value=None if value is None else TokenValue(numerator=value, denominator=1),
        usual_cost=cost,
    )
    rule = policy.SealingRule(threshold=threshold, max_age=HOUR, value_to_gas=ratio)
    return policy.seal(unsealed, now=NOW, rule=rule, terms=_terms(rate), capabilities=capabilities)


def _claim(tokens: int, *, closing: bool = False) -> Seal:
    return Seal(tokens=tokens, closing=closing)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # the threshold
        ({"tokens": 99}, None),
        ({"tokens": 100}, _claim(100)),
        ({"tokens": 250}, _claim(250)),
        ({"tokens": 499, "threshold": 500}, None),
        ({"tokens": 500, "threshold": 500}, _claim(500)),
        # the age of the oldest token
        ({"tokens": 120, "threshold": 500, "age": 3599}, None),
        ({"tokens": 120, "threshold": 500, "age": 3600}, _claim(120)),
        ({"tokens": 99, "threshold": 500, "age": 99_999}, None),
        # the marketplace's rate
        ({"tokens": 250, "rate": 1000, "since_claim": 0}, None),
        ({"tokens": 250, "rate": 1000, "since_claim": 1}, _claim(250)),
        ({"tokens": 5000, "rate": 1000, "since_claim": 1.9}, _claim(2000)),
        ({"tokens": 250, "rate": 10, "since_claim": 4.9}, None),
        ({"tokens": 250, "rate": 10, "since_claim": 5}, _claim(100)),
        ({"tokens": 250, "rate": 10, "since_claim": 12}, _claim(240)),
        ({"tokens": 250, "rate": 10, "since_claim": 13}, _claim(250)),
        ({"tokens": 250, "rate": 10, "since_claim": -5}, None),
        # the rate of the job itself, where the chain states one
        ({"tokens": 250, "rate": 1000, "job_rate": 10, "since_claim": 12}, _claim(240)),
        ({"tokens": 250, "rate": 10, "job_rate": 1000, "since_claim": 1}, _claim(250)),
        # what a claim brings, against twice what claims cost
        ({"tokens": 100, "value": 2, "cost": 101}, None),
        ({"tokens": 101, "value": 2, "cost": 101}, _claim(101)),
        ({"tokens": 100, "value": 2, "cost": 101, "ratio": 0}, _claim(100)),
        ({"tokens": 100, "value": None, "cost": 10**18}, _claim(100)),
        ({"tokens": 100, "value": 0, "cost": None}, _claim(100)),
        ({"tokens": 120, "threshold": 500, "age": 3600, "value": 0, "cost": 1}, None),
        ({"tokens": 5000, "rate": 10, "since_claim": 10, "value": 1, "cost": 101}, None),
        # a deadline: once, whatever the threshold and the value say, but never against the rate or the minimum
        ({"tokens": 100, "threshold": 500, "value": 0, "cost": 1, "forced_in": 0}, _claim(100)),
        ({"tokens": 100, "threshold": 500, "value": 0, "cost": 1, "forced_in": 1}, None),
        ({"tokens": 100, "threshold": 500, "forced_in": -60, "since_claim": 30}, None),
        ({"tokens": 99, "forced_in": 0}, None),
        ({"tokens": 250, "rate": 10, "since_claim": 4, "forced_in": 0}, None),
        # the end, while only the depositor may end the job: what is large enough is claimed ahead
        ({"tokens": 250, "ending": True, "disputed_for": 30}, _claim(250)),
        ({"tokens": 250, "ending": True, "disputed_for": 30, "rate": 10, "since_claim": 6}, _claim(120)),
        ({"tokens": 250, "ending": True, "disputed_for": 30, "rate": 10, "since_claim": 4}, None),
        ({"tokens": 99, "ending": True, "disputed_for": 30}, _claim(99, closing=True)),
        ({"tokens": 250, "ending": True, "disputed_for": 0}, _claim(250, closing=True)),
        ({"tokens": 250, "ending": True, "value": 0, "cost": 1}, _claim(250, closing=True)),
        # the end, with a closing claim: whole, whatever the rate says
        ({"tokens": 0, "ending": True}, None),
        ({"tokens": 1, "ending": True}, _claim(1, closing=True)),
        ({"tokens": 99, "ending": True}, _claim(99, closing=True)),
        ({"tokens": 250, "ending": True, "rate": 10, "since_claim": 0}, _claim(250, closing=True)),
        # the end, without one: what is below the minimum is lost, nothing is padded
        ({"tokens": 0, "ending": True, "capabilities": WITHOUT_CLOSING}, None),
        ({"tokens": 99, "ending": True, "capabilities": WITHOUT_CLOSING}, None),
        ({"tokens": 100, "ending": True, "capabilities": WITHOUT_CLOSING}, _claim(100)),
        ({"tokens": 250, "ending": True, "threshold": 900, "capabilities": WITHOUT_CLOSING}, _claim(250)),
    ],
)
def test_what_is_sealed(arguments: dict[str, object], expected: Seal | None) -> None:
    assert _seal(**arguments) == expected  # type: ignore[arg-type]


_tokens = st.integers(1, 10**7)
_rates = st.integers(1, 10**5)
_times = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(tokens=_tokens, rate=_rates, since=_times)
def test_at_the_earliest_time_the_claim_is_allowed_and_a_second_before_it_is_not(
    tokens: int, rate: int, since: datetime
) -> None:
    terms = _terms(rate)
    earliest = terms.earliest_claim(tokens, since=since)
    assert terms.allowed_tokens(since=since, now=earliest) >= tokens
    assert terms.allowed_tokens(since=since, now=earliest - timedelta(seconds=1)) < tokens
    assert terms.allowed_tokens(since=since, now=earliest - timedelta(microseconds=1)) < tokens


@given(
    tokens=st.integers(0, 10**6),
    threshold=st.integers(100, 10**5),
    age=st.integers(0, 10**5),
    since_claim=st.integers(0, 10**5),
    rate=_rates,
    ending=st.booleans(),
)
def test_a_seal_never_exceeds_what_is_there_and_never_breaks_the_rate_while_a_session_goes_on(
    tokens: int, threshold: int, age: int, since_claim: int, rate: int, ending: bool
) -> None:
    sealed = _seal(tokens, threshold=threshold, age=age, since_claim=since_claim, rate=rate, ending=ending)
    if sealed is None:
        assert not ending or tokens == 0
        return
    assert 0 < sealed.tokens <= tokens
    assert sealed.closing == ending
    assert ending or 100 <= sealed.tokens <= 2 * rate * since_claim


@given(
    tokens=st.integers(0, 10**6),
    threshold=st.integers(100, 10**5),
    age=st.integers(0, 10**5),
    since_claim=st.integers(0, 10**5),
    rate=_rates,
    job_rate=st.none() | _rates,
    ending=st.booleans(),
    forced_in=st.none() | st.integers(-(10**5), 10**5),
    disputed_for=st.none() | st.integers(-100, 100),
    value=st.none() | st.integers(0, 10**6),
    cost=st.none() | st.integers(0, 10**12),
    ratio=st.integers(0, 10),
    capabilities=st.sampled_from([WITH_CLOSING, WITHOUT_CLOSING]),
)
def test_whatever_the_circumstances_a_seal_is_one_that_the_marketplace_accepts(**circumstances: Any) -> None:
    sealed = _seal(**circumstances)
    if sealed is None:
        return
    tokens, ending = circumstances["tokens"], circumstances["ending"]
    assert 0 < sealed.tokens <= tokens
    assert sealed.closing is False or (ending and circumstances["capabilities"].closing_claim)
    assert sealed.closing or sealed.tokens >= 100
    if not ending:
        rate = circumstances["job_rate"] or circumstances["rate"]
        assert sealed.tokens <= 2 * rate * circumstances["since_claim"]
        value, cost = circumstances["value"], circumstances["cost"]
        forced_in = circumstances["forced_in"]
        forced = forced_in is not None and -circumstances["since_claim"] < forced_in <= 0
        if not forced and value is not None and cost is not None:
            assert sealed.tokens * value >= circumstances["ratio"] * cost


@given(value=st.integers(0, 10**9), cost=st.integers(1, 10**12), ratio=st.integers(1, 5))
def test_a_worthless_claim_waits_and_its_deadline_makes_it_all_the_same(value: int, cost: int, ratio: int) -> None:
    waits = _seal(1000, value=value, cost=cost, ratio=ratio)
    assert (waits is None) == (1000 * value < ratio * cost)
    assert _seal(1000, value=value, cost=cost, ratio=ratio, forced_in=-1) == _claim(1000)


@pytest.mark.parametrize(
    ("expires", "claimed", "idle", "expected"),
    [
        (3600, None, None, 3600 - 180),
        (60, None, None, 45),
        (None, None, 600, 600 - 150),
        (None, None, 3600, 3600 - 180),
        (None, 500, 3600, 4100 - 180),
        (3600, 500, 600, 1100 - 150),
        (900, 500, 3600, 900 - 180),
        (None, None, None, None),
    ],
)
def test_when_a_job_s_tokens_are_claimed_at_the_latest(
    expires: int | None, claimed: int | None, idle: int | None, expected: int | None
) -> None:
    def moment(seconds: int | None) -> datetime | None:
        return None if seconds is None else NOW + timedelta(seconds=seconds)

    found = policy.forced_at(
        started_at=NOW,
        expires_at=moment(expires),
        last_claim_at=moment(claimed),
        idle_timeout=None if idle is None else timedelta(seconds=idle),
    )
    assert found == moment(expected)
    assert policy.forced_at(started_at=None, expires_at=NOW, last_claim_at=None, idle_timeout=HOUR) is None


def test_what_a_token_brings_in_wei() -> None:
    terms = {"fee_basis_points": 1000, "price_precision": 1000}
    native = policy.token_value(price=10**12, native=True, native_price_usdc=None, **terms)
    assert native is not None
    assert native.of(1000) == 9 * 10**11
    # 2 USDC for 1000 tokens, 2000 USDC for a coin: 1.8 of 2000.
    usdc = policy.token_value(price=2_000_000, native=False, native_price_usdc=2_000_000_000, **terms)
    assert usdc is not None
    assert usdc.of(1000) == 9 * 10**14
    assert policy.token_value(price=1, native=False, native_price_usdc=None, **terms) is None


def test_a_claim_may_cost_its_value_or_three_usual_costs() -> None:
    value = TokenValue(numerator=10, denominator=1)
    assert policy.cost_limit(tokens=100, value=value, usual_cost=200) == 1000
    assert policy.cost_limit(tokens=100, value=value, usual_cost=400) == 1200
    assert policy.cost_limit(tokens=100, value=None, usual_cost=400) is None
    assert policy.cost_limit(tokens=100, value=value, usual_cost=None) is None


@given(row=st.integers(1, 10**9), tries=st.integers(0, 10**4), first=st.integers(1, 600))
def test_pauses_double_up_to_a_limit_and_are_the_same_each_time(row: int, tries: int, first: int) -> None:
    found = pause(row, tries=tries, first=timedelta(seconds=first))
    base = min(LONGEST_PAUSE, timedelta(seconds=first * 2 ** min(tries, 10)))
    assert base <= found <= base * 1.1
    assert found == pause(row, tries=tries, first=timedelta(seconds=first))


def test_rows_refused_together_do_not_come_back_together() -> None:
    assert len({pause(row, tries=3, first=timedelta(seconds=10)) for row in range(100)}) == 100


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize(("tokens", "claimed"), [(100, None), (999, None), (1000, 1000), (1500, 1500)])
def test_a_job_s_first_claim_reaches_what_the_marketplace_demands_of_it_or_is_not_made(
    tokens: int, claimed: int | None, ending: bool
) -> None:
    sealed = _seal(tokens, first=1000, ending=ending, capabilities=WITHOUT_CLOSING)
    assert sealed == (None if claimed is None else _claim(claimed))


def test_a_first_claim_waits_until_the_rate_rule_allows_all_that_is_demanded_of_it() -> None:
    assert _seal(1500, first=1000, rate=10, since_claim=49) is None
    assert _seal(1500, first=1000, rate=10, since_claim=50) == _claim(1000)


def test_no_deadline_makes_a_first_claim_that_the_marketplace_would_refuse() -> None:
    assert _seal(999, first=1000, forced_in=-1) is None
    assert _seal(1000, first=1000, forced_in=-1, threshold=10**6) == _claim(1000)


@given(tokens=st.integers(0, 10_000), first=st.integers(0, 5_000), since=st.integers(0, 10**4), ending=st.booleans())
def test_what_is_sealed_first_is_never_padded_and_never_below_the_minimum(
    tokens: int, first: int, since: int, ending: bool
) -> None:
    sealed = _seal(tokens, first=first, since_claim=since, ending=ending, capabilities=WITHOUT_CLOSING)
    if sealed is not None:
        assert max(100, first) <= sealed.tokens <= tokens


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        (150, 5, None),  # 100 are allowed: 50 would be left, which nothing could ever claim
        (150, 8, 150),
        (230, 10, 130),  # 200 are allowed: 100 stay behind
        (300, 10, 200),
        (200, 10, 200),
    ],
)
def test_the_rate_leaves_nothing_behind_that_could_not_be_claimed_where_no_closing_claim_takes_it(
    tokens: int, seconds: int, expected: int | None
) -> None:
    sealed = _seal(tokens, since_claim=seconds, rate=10, capabilities=WITHOUT_CLOSING)
    assert sealed == (None if expected is None else _claim(expected))


def test_a_closing_claim_takes_what_the_rate_leaves_and_a_deadline_does_not_wait_for_it() -> None:
    assert _seal(150, since_claim=5, rate=10) == _claim(100)
    assert _seal(150, since_claim=5, rate=10, capabilities=WITHOUT_CLOSING, forced_in=-1) == _claim(100)
