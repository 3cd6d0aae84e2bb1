"""Rows of the way from counted tokens to money."""

from settlement.models.block import ChainCursor
from settlement.models.checkpoint import Checkpoint, CheckpointEvent, CheckpointState
from settlement.models.deployment import ContractDeployment
from settlement.models.earning import Earning, EarningKind
from settlement.models.transaction import (
    Attempt,
    AttemptState,
    Receipt,
    Transaction,
    TransactionKind,
    TransactionState,
)

__all__ = [
    "Attempt",
    "AttemptState",
    "ChainCursor",
    "Checkpoint",
    "CheckpointEvent",
    "CheckpointState",
    "ContractDeployment",
    "Earning",
    "EarningKind",
    "Receipt",
    "Transaction",
    "TransactionKind",
    "TransactionState",
]
