"""What colour a state has on every page: red needs an operator, orange waits, green is paid."""

from __future__ import annotations

from django.utils.safestring import SafeString

from nodes.read_only_admin import badge
from settlement.models import AttemptState, CheckpointState, TransactionState

_CHECKPOINTS = {
    CheckpointState.CONFIRMED: "success",
    CheckpointState.SETTLED: "success",
    CheckpointState.WITHDRAWN: "success",
    CheckpointState.RETRY_AT: "warning",
    CheckpointState.PAUSED: "warning",
    CheckpointState.REORGED: "warning",
    CheckpointState.FAILED: "danger",
}
_TRANSACTIONS = {
    TransactionState.QUEUED: "neutral",
    TransactionState.FINAL: "success",
    TransactionState.REVERTED: "danger",
    TransactionState.FAILED: "danger",
    TransactionState.CANCELLED: "warning",
}
_ATTEMPTS = {AttemptState.MINED: "success", AttemptState.REPLACED: "neutral", AttemptState.DISPLACED: "danger"}


def checkpoint_badge(state: str) -> SafeString:
    """The label of a checkpoint's state."""
    return badge(state, colour=_CHECKPOINTS.get(CheckpointState(state), "info"))


def transaction_badge(state: str) -> SafeString:
    """The label of a transaction's state."""
    return badge(state, colour=_TRANSACTIONS.get(TransactionState(state), "info"))


def attempt_badge(state: str) -> SafeString:
    """The label of an attempt's state."""
    return badge(state, colour=_ATTEMPTS.get(AttemptState(state), "info"))
