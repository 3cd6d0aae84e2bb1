"""Admin pages of the way from counted tokens to money: one module per kind of row."""

from settlement.admin.checkpoint import CheckpointAdmin
from settlement.admin.deployment import ChainCursorAdmin, ContractDeploymentAdmin
from settlement.admin.earning import EarningAdmin
from settlement.admin.session import SettledSessionAdmin
from settlement.admin.transaction import AttemptAdmin, ReceiptAdmin, SenderAdmin, TransactionAdmin
from settlement.admin.withdrawal import WithdrawalAdmin

__all__ = [
    "AttemptAdmin",
    "ChainCursorAdmin",
    "CheckpointAdmin",
    "ContractDeploymentAdmin",
    "EarningAdmin",
    "ReceiptAdmin",
    "SenderAdmin",
    "SettledSessionAdmin",
    "TransactionAdmin",
    "WithdrawalAdmin",
]
