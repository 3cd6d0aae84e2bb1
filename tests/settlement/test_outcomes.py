"""What nodes answer to a sent transaction, in the words of each client, and the fees that are offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settlement.txmanager.fees import MAX_GAS_LIMIT, fees_for, gas_limit_for
from settlement.txmanager.outcomes import LEFT_THE_NODE, SendOutcome, classify

GWEI = 10**9


@pytest.mark.parametrize(
    ("client", "message", "outcome"),
    [
        ("geth", "already known", SendOutcome.ALREADY_KNOWN),
        ("reth", "already known", SendOutcome.ALREADY_KNOWN),
        ("erigon", "already known", SendOutcome.ALREADY_KNOWN),
        ("nethermind", "AlreadyKnown", SendOutcome.ALREADY_KNOWN),
        ("besu", "Known transaction", SendOutcome.ALREADY_KNOWN),
        ("anvil", "transaction already imported", SendOutcome.ALREADY_KNOWN),
        ("geth", "nonce too low", SendOutcome.NONCE_TOO_LOW),
        ("geth", "nonce too low: next nonce 5, tx nonce 3", SendOutcome.NONCE_TOO_LOW),
        ("reth", "nonce too low: next nonce 5, tx nonce 3", SendOutcome.NONCE_TOO_LOW),
        ("erigon", "nonce too low", SendOutcome.NONCE_TOO_LOW),
        ("nethermind", "OwnNonceAlreadyUsed", SendOutcome.NONCE_TOO_LOW),
        ("nethermind", "nonce too low", SendOutcome.NONCE_TOO_LOW),
        ("besu", "Nonce too low", SendOutcome.NONCE_TOO_LOW),
        ("anvil", "nonce too low", SendOutcome.NONCE_TOO_LOW),
        ("geth", "nonce too high", SendOutcome.NONCE_TOO_HIGH),
        ("nethermind", "NonceGap, Future nonce. Expected nonce: 3", SendOutcome.NONCE_TOO_HIGH),
        ("geth", "transaction underpriced", SendOutcome.UNDERPRICED),
        ("geth", "replacement transaction underpriced", SendOutcome.UNDERPRICED),
        ("geth", "max fee per gas less than block base fee: address 0xab, maxFeePerGas: 1", SendOutcome.UNDERPRICED),
        ("reth", "max fee per gas less than block base fee", SendOutcome.UNDERPRICED),
        ("erigon", "fee too low", SendOutcome.UNDERPRICED),
        ("nethermind", "FeeTooLow, EffectivePriorityFeePerGas too low", SendOutcome.UNDERPRICED),
        ("anvil", "max fee per gas less than block base fee", SendOutcome.UNDERPRICED),
        ("geth", "insufficient funds for gas * price + value: balance 0", SendOutcome.INSUFFICIENT_FUNDS),
        ("reth", "insufficient funds for gas * price + value", SendOutcome.INSUFFICIENT_FUNDS),
        ("nethermind", "InsufficientFunds, Account balance: 0", SendOutcome.INSUFFICIENT_FUNDS),
        ("besu", "Upfront cost exceeds account balance", SendOutcome.INSUFFICIENT_FUNDS),
        ("anvil", "Insufficient funds for gas * price + value", SendOutcome.INSUFFICIENT_FUNDS),
        ("geth", "exceeds block gas limit", SendOutcome.GAS_TOO_HIGH),
        ("geth", "intrinsic gas too low", SendOutcome.GAS_TOO_HIGH),
        ("geth", "execution reverted", SendOutcome.REVERTED),
        ("gateway", "Too Many Requests", SendOutcome.UNAVAILABLE),
        ("gateway", "request timed out", SendOutcome.UNAVAILABLE),
        ("gateway", "your app has exceeded its rate limit", SendOutcome.UNAVAILABLE),
        ("geth", "invalid sender", SendOutcome.UNKNOWN),
        ("nobody", "", SendOutcome.UNKNOWN),
    ],
)
def test_a_clients_words_have_one_meaning(client: str, message: str, outcome: SendOutcome) -> None:
    assert classify(message) is outcome
    assert classify(message.upper()) is outcome


def test_only_answers_that_leave_the_rest_to_receipts_count_as_sent() -> None:
    assert {SendOutcome.ACCEPTED, SendOutcome.ALREADY_KNOWN, SendOutcome.NONCE_TOO_LOW} == LEFT_THE_NODE


def test_fees_survive_a_doubling_of_the_base_fee() -> None:
    fees = fees_for(base_fee=3 * GWEI, priority_fee=1 * GWEI, cap=100 * GWEI)
    assert (fees.max_fee_per_gas, fees.max_priority_fee_per_gas) == (7 * GWEI, 1 * GWEI)


def test_fees_never_exceed_the_cap_and_the_tip_never_the_fee() -> None:
    fees = fees_for(base_fee=80 * GWEI, priority_fee=150 * GWEI, cap=100 * GWEI)
    assert (fees.max_fee_per_gas, fees.max_priority_fee_per_gas) == (100 * GWEI, 100 * GWEI)


def test_an_idle_chain_still_gets_the_minimum_base_fee() -> None:
    assert fees_for(base_fee=0, priority_fee=0, cap=100 * GWEI).max_fee_per_gas == 2 * 10**6


@given(base=st.integers(0, 10**12), tip=st.integers(0, 10**12), cap=st.integers(1, 10**12))
def test_fees_stay_in_bounds(base: int, tip: int, cap: int) -> None:
    fees = fees_for(base_fee=base, priority_fee=tip, cap=cap)
    assert 0 <= fees.max_priority_fee_per_gas <= fees.max_fee_per_gas <= cap


def test_a_gas_limit_has_a_margin_and_an_end() -> None:
    assert gas_limit_for(100_000) == 125_000
    assert gas_limit_for(MAX_GAS_LIMIT) == MAX_GAS_LIMIT
