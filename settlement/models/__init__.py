"""Rows of the way from counted tokens to money."""

from settlement.models.block import ChainCursor
from settlement.models.checkpoint import Checkpoint, CheckpointEvent, CheckpointState
from settlement.models.closing import Closing, JobScan
from settlement.models.deployment import ContractDeployment
from settlement.models.earning import Earning, EarningKind, EarningTotal
from settlement.models.transaction import (
    Attempt,
    AttemptKind,
    AttemptState,
    Receipt,
    Sender,
    Transaction,
    TransactionEvent,
    TransactionKind,
    TransactionState,
)
from settlement.models.withdrawal import GasCursor, LedgerCheck, Withdrawal, WithdrawalKind, WithdrawalState

__all__ = [
    "Attempt",
    "AttemptKind",
    "AttemptState",
    "ChainCursor",
    "Checkpoint",
    "CheckpointEvent",
    "CheckpointState",
    "Closing",
    "ContractDeployment",
    "Earning",
    "EarningKind",
    "EarningTotal",
    "GasCursor",
    "JobScan",
    "LedgerCheck",
    "Receipt",
    "Sender",
    "Transaction",
    "TransactionEvent",
    "TransactionKind",
    "TransactionState",
    "Withdrawal",
    "WithdrawalKind",
    "WithdrawalState",
]
