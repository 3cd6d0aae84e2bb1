"""What to offer for gas, in wei: twice the base fee and a tip, floors, a hard cap, and bumps of a tenth.

Pure arithmetic in integers. Guarantees that nothing here exceeds the operator's cap, that a
replacement raises both caps by at least a tenth over the highest attempt (invariant 6; what nodes ask
for), and that what cannot be raised that far is not raised at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from settlement.txmanager.limits import Limits

# The estimate is of today's state; a claim may run on a state that costs a little more.
_GAS_MARGIN_PERCENT = 25
_BUMP_PERCENT = 10
# Base refuses transactions above 2^24 gas.
MAX_GAS_LIMIT = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """wei per unit of gas."""

    max_fee_per_gas: int
    max_priority_fee_per_gas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a chain asks for now, the operator's floors applied. wei per unit of gas; ``head`` a block number."""

    base_fee: int
    priority_fee: int
    head: int

    @property
    def fee_per_gas(self) -> int:
        """What a transaction would pay in the next block."""
        return self.base_fee + self.priority_fee


def prices(*, base_fee: int, priority_fee: int, head: int, limits: Limits) -> Prices:
    """The chain's words, not below the operator's floors."""
    return Prices(
        base_fee=max(base_fee, limits.min_base_fee),
        priority_fee=max(priority_fee, limits.min_priority_fee),
        head=head,
    )


def market_fees(market: Prices, *, limits: Limits) -> Fees:
    """Fees that survive a doubling of the base fee, never above the cap."""
    fee = min(2 * market.base_fee + market.priority_fee, limits.max_fee_per_gas)
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=min(market.priority_fee, fee))


def bumped(highest: Fees, *, market: Fees, limits: Limits) -> Fees | None:
    """Both caps a tenth higher, or the market's where that is more. ``None`` if the cap forbids it."""
    fee = _raised(highest.max_fee_per_gas)
    tip = _raised(highest.max_priority_fee_per_gas)
    if fee > limits.max_fee_per_gas:
        return None
    fee = max(fee, min(market.max_fee_per_gas, limits.max_fee_per_gas))
    # A tip above the fee cap is refused by every node; at a tip of 0 a tenth more is still 1 wei.
    tip = max(tip, min(market.max_priority_fee_per_gas, fee))
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=tip) if tip <= fee else None


def is_outbid(offered: Fees, *, market: Prices) -> bool:
    """Whether the next block would take others first: what is left for the tip is below the market's."""
    tip = min(offered.max_priority_fee_per_gas, offered.max_fee_per_gas - market.base_fee)
    return tip < market.priority_fee


def affordable(fees: Fees, *, gas_limit: int, l1_fee: int, market: Prices, budget: int) -> Fees | None:
    """``fees`` with the fee cap lowered to what ``budget`` wei allow, or ``None`` if that buys no block.

    The cap is what may be paid, not what is: between today's price and twice it, a lower one only makes
    the transaction wait if the base fee rises.
    """
    fee = min(fees.max_fee_per_gas, (budget - l1_fee) // gas_limit)
    if fee < min(market.fee_per_gas, fees.max_fee_per_gas):
        return None
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=min(fees.max_priority_fee_per_gas, fee))


def gas_limit_for(estimate: int) -> int:
    """The gas limit to sign for an estimate, in units of gas."""
    return min(MAX_GAS_LIMIT, estimate + estimate * _GAS_MARGIN_PERCENT // 100)


def _raised(amount: int) -> int:
    return amount + max(1, -(-amount * _BUMP_PERCENT // 100))
