"""What nodes answer to a sent transaction, in the words of each client."""

from __future__ import annotations

import pytest

from settlement.txmanager.outcomes import LEFT_THE_NODE, PRICED_TOO_LOW, SendOutcome, classify

_WORDS: dict[SendOutcome, tuple[tuple[str, str], ...]] = {
    SendOutcome.ALREADY_KNOWN: (
        ("geth", "already known"),
        ("op-geth", "already known"),
        ("reth", "already known"),
        ("erigon", "already known"),
        ("nethermind", "AlreadyKnown"),
        ("besu", "Known transaction"),
        ("besu", "TRANSACTION_ALREADY_KNOWN"),
        ("anvil", "transaction already imported"),
        ("openethereum", "Transaction with the same hash was already imported."),
    ),
    SendOutcome.NONCE_TOO_LOW: (
        ("geth", "nonce too low"),
        ("geth", "nonce too low: next nonce 5, tx nonce 3"),
        ("op-geth", "nonce too low: address 0xab, tx: 3 state: 5"),
        ("reth", "nonce too low: next nonce 5, tx nonce 3"),
        ("erigon", "nonce too low"),
        ("nethermind", "OwnNonceAlreadyUsed"),
        ("nethermind", "OldNonce, Current nonce: 5, nonce of rejected tx: 3"),
        ("nethermind", "nonce too low"),
        ("besu", "Nonce too low"),
        ("besu", "NONCE_TOO_LOW"),
        ("anvil", "nonce too low"),
        ("anvil", "transaction nonce is too low"),
    ),
    SendOutcome.NONCE_TOO_HIGH: (
        ("geth", "nonce too high"),
        ("geth", "nonce too high: address 0xab, tx: 9 state: 5"),
        ("geth", "in-flight transaction limit reached for delegated accounts"),
        ("geth", "gapped-nonce tx from delegated accounts"),
        ("nethermind", "NonceGap, Future nonce. Expected nonce: 3"),
        ("besu", "Transaction nonce is too distant from current sender nonce"),
        ("besu", "NONCE_TOO_FAR_IN_FUTURE_FOR_SENDER"),
    ),
    SendOutcome.REPLACEMENT_UNDERPRICED: (
        ("geth", "replacement transaction underpriced"),
        ("geth", "replacement transaction underpriced: new tx gas tip cap 1 < 2"),
        ("op-geth", "replacement transaction underpriced"),
        ("reth", "replacement transaction underpriced"),
        ("erigon", "could not replace existing tx"),
        ("nethermind", "ReplacementNotAllowed"),
        ("besu", "Replacement transaction underpriced"),
        ("besu", "TRANSACTION_REPLACEMENT_UNDERPRICED"),
        ("anvil", "replacement transaction underpriced"),
    ),
    SendOutcome.UNDERPRICED: (
        ("geth", "transaction underpriced"),
        ("geth", "transaction underpriced: gas tip cap 1, minimum needed 2"),
        ("reth", "transaction underpriced"),
        ("erigon", "underpriced"),
        ("nethermind", "FeeTooLow, EffectivePriorityFeePerGas too low"),
        ("besu", "Gas price below configured minimum gas price"),
        ("besu", "GAS_PRICE_TOO_LOW"),
    ),
    SendOutcome.FEE_BELOW_BASE: (
        ("geth", "max fee per gas less than block base fee: address 0xab, maxFeePerGas: 1, baseFee: 7"),
        ("op-geth", "max fee per gas less than block base fee: address 0xab, maxFeePerGas: 1, baseFee: 7"),
        ("reth", "max fee per gas less than block base fee"),
        ("erigon", "fee cap less than block base fee"),
        ("besu", "gas price below current base fee"),
        ("anvil", "max fee per gas less than block base fee"),
    ),
    SendOutcome.FEE_OVER_NODE_CAP: (
        ("geth", "tx fee (1.50 ether) exceeds the configured cap (1.00 ether)"),
        ("reth", "tx fee (1500000000000000000 wei) exceeds the configured cap (1000000000000000000 wei)"),
        ("besu", "Transaction fee cap exceeded"),
        ("besu", "TX_FEECAP_EXCEEDED"),
    ),
    SendOutcome.INSUFFICIENT_FUNDS: (
        ("geth", "insufficient funds for gas * price + value: balance 0, tx cost 5, overshot 5"),
        ("geth", "insufficient funds for transfer"),
        ("op-geth", "insufficient funds for gas * price + value: have 0 want 9 (l1 cost included)"),
        ("reth", "insufficient funds for gas * price + value"),
        ("erigon", "insufficient funds for gas * price + value"),
        ("nethermind", "InsufficientFunds, Account balance: 0, cumulative cost: 9"),
        ("besu", "Upfront cost exceeds account balance"),
        ("besu", "UPFRONT_COST_EXCEEDS_BALANCE"),
        ("anvil", "Insufficient funds for gas * price + value"),
    ),
    SendOutcome.GAS_TOO_HIGH: (
        ("geth", "exceeds block gas limit"),
        ("geth", "intrinsic gas too low"),
        ("geth", "transaction gas limit too high (cap: 16777216, tx: 20000000)"),
        ("nethermind", "GasLimitExceeded, Gas limit: 1"),
        ("besu", "Transaction gas limit exceeds block gas limit"),
        ("besu", "EXCEEDS_BLOCK_GAS_LIMIT"),
        ("anvil", "intrinsic gas too high"),
    ),
    SendOutcome.RATE_LIMITED: (
        ("gateway", "Too Many Requests"),
        ("gateway", "your app has exceeded its rate limit"),
        ("gateway", "daily request count exceeded, request rate limited"),
        ("gateway", "Your app has exceeded its compute units per second capacity"),
        ("gateway", "project ID request rate exceeded: throttled"),
    ),
    SendOutcome.REVERTED: (
        ("geth", "execution reverted"),
        ("geth", "execution reverted: SessionNotActive"),
        ("besu", "Execution reverted"),
        ("parity", "VM execution error."),
    ),
    SendOutcome.FATAL: (
        ("geth", "invalid sender"),
        ("geth", "transaction type not supported"),
        ("geth", "oversized data: transaction size 140000, limit 131072"),
        ("geth", "max priority fee per gas higher than max fee per gas"),
        ("nethermind", "InvalidTxSignature: invalid signature"),
        ("besu", "WRONG_CHAIN_ID"),
        ("besu", "INVALID_TRANSACTION_FORMAT"),
        ("anvil", "invalid chain id for signer"),
    ),
    SendOutcome.UNAVAILABLE: (
        ("gateway", "request timed out"),
        ("gateway", "503 Service Unavailable"),
        ("geth", "context deadline exceeded"),
        ("geth", "txpool is full"),
        ("reth", "Internal error"),
    ),
    SendOutcome.UNKNOWN: (
        ("nobody", ""),
        ("nobody", "the moon is in the wrong phase"),
        ("geth", "transaction indexing is in progress"),
    ),
}
_ROWS = [(client, words, outcome) for outcome, rows in _WORDS.items() for client, words in rows]


@pytest.mark.parametrize(("client", "message", "outcome"), _ROWS)
def test_a_clients_words_have_one_meaning(client: str, message: str, outcome: SendOutcome) -> None:
    assert classify(message) is outcome
    assert classify(message.upper()) is outcome


def test_every_outcome_of_a_refusal_is_met_in_some_clients_words() -> None:
    assert {outcome for _, _, outcome in _ROWS} == set(SendOutcome) - {SendOutcome.ACCEPTED}


def test_only_answers_that_leave_the_rest_to_receipts_count_as_sent() -> None:
    assert {SendOutcome.ACCEPTED, SendOutcome.ALREADY_KNOWN, SendOutcome.NONCE_TOO_LOW} == LEFT_THE_NODE


def test_only_a_price_that_the_node_names_too_low_is_raised_for_its_sake() -> None:
    assert {
        SendOutcome.UNDERPRICED,
        SendOutcome.REPLACEMENT_UNDERPRICED,
        SendOutcome.FEE_BELOW_BASE,
    } == PRICED_TOO_LOW
