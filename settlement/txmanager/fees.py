"""Fees, by a simple rule: twice the base fee plus the node's suggested tip, under a hard cap. In wei."""

from __future__ import annotations

from dataclasses import dataclass

# The estimate is of today's state; a claim may run on a state that costs a little more.
_GAS_MARGIN_PERCENT = 25
# Base refuses transactions above 2^24 gas.
MAX_GAS_LIMIT = 2**24
_MIN_BASE_FEE = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """wei per unit of gas."""

    max_fee_per_gas: int
    max_priority_fee_per_gas: int


def fees_for(*, base_fee: int, priority_fee: int, cap: int) -> Fees:
    """EIP-1559 fees that survive a doubling of the base fee, never above ``cap``."""
    wanted = 2 * max(base_fee, _MIN_BASE_FEE) + priority_fee
    max_fee = min(wanted, cap)
    return Fees(max_fee_per_gas=max_fee, max_priority_fee_per_gas=min(priority_fee, max_fee))


def gas_limit_for(estimate: int) -> int:
    """The gas limit to sign for an estimate, in units of gas."""
    return min(MAX_GAS_LIMIT, estimate + estimate * _GAS_MARGIN_PERCENT // 100)
