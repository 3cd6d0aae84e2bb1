"""When to claim: thresholds, age and the marketplace's rate, as tables and properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settlement import policy
from settlement.chain.marketplaces import Capabilities, Terms
from settlement.policy import Seal

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
) -> Seal | None:
    unsealed = policy.Unsealed(
        tokens=tokens,
        oldest_at=NOW - timedelta(seconds=age),
        last_claim_at=NOW - timedelta(seconds=since_claim),
        ending=ending,
    )
    rule = policy.SealingRule(threshold=threshold, max_age=HOUR)
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
