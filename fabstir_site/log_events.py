"""Every event that a log line may be named by: what to look for, and to raise alarms on.

A line has at most one. What happens to money, or keeps it from moving, always has one.
"""

from __future__ import annotations

from enum import StrEnum


class LogEvent(StrEnum):
    """``extra={"event": …}`` of this node's log lines."""

    # Serving
    USAGE_NOT_RECORDED = "usage_not_recorded"
    TOKENS_UNTOLD = "tokens_untold"
    DATABASE_UNAVAILABLE = "database_unavailable"
    RATE_LIMITS_OFF = "rate_limits_off"
    RATE_LIMITS_ON = "rate_limits_on"

    # Proofs and claims
    PROOF_REFUSED = "proof_refused"
    PROVER_UNAVAILABLE = "prover_unavailable"
    NOTHING_PROVED = "nothing_proved"
    CLAIM_CONFIRMED = "claim_confirmed"
    CLAIM_REFUSED = "claim_refused"
    CHECKPOINT_REQUEST = "checkpoint_request"
    TOKENS_UNCLAIMABLE = "tokens_unclaimable"
    COMPLETION_REFUSED = "completion_refused"
    RECOVERED = "recovered"

    # Transactions
    TRANSACTION_SENT = "transaction_sent"
    SEND_REFUSED = "send_refused"
    TRANSACTION_REFUSED = "transaction_refused"
    TRANSACTION_PUT_OFF = "transaction_put_off"
    TRANSACTION_REPLACED = "transaction_replaced"
    TRANSACTION_NOT_REPLACED = "transaction_not_replaced"
    SIMULATION_REVERTED = "simulation_reverted"
    CANCEL_REQUESTED = "cancel_requested"
    BUMP_REQUESTED = "bump_requested"
    LEASE_LOST = "lease_lost"
    NONCE_GAP = "nonce_gap"
    NONCE_STOLEN = "nonce_stolen"
    NONCE_FAST_FORWARD = "nonce_fast_forward"
    RECEIPT_MISSING = "receipt_missing"
    NO_HISTORIC_STATE = "no_historic_state"
    FINAL_TRANSACTION_LOST = "final_transaction_lost"
    REORG = "reorg"

    # A sender that sends nothing new
    WRONG_CHAIN = "wrong_chain"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    FEE_ORACLE_FAILED = "fee_oracle_failed"
    GAS_BUDGET_SPENT = "gas_budget_spent"

    # Payouts
    SWEEP_WAITS = "sweep_waits"
    WITHDRAWAL_FINAL = "withdrawal_final"

    # The chain and the books
    CHAIN_UNAVAILABLE = "chain_unavailable"
    CONTRACT_UNREADABLE = "contract_unreadable"
    RPC_FAILED = "rpc_failed"
    LEDGER = "ledger"
