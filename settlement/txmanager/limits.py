"""What a transaction may cost and how long it may take: the operator's limits in one value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Finality = Literal["depth", "safe", "finalized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All amounts in wei.

    ``max_fee_per_gas`` is never exceeded by a signature, ``max_cost`` never by one transaction (all of
    its gas at its fee cap, and the L1 data fee), ``daily_budget`` never by the transactions of 24 hours.
    ``min_base_fee`` and ``min_priority_fee`` are floors: a chain with a minimum base fee never mines
    less. What nobody has mined is sent again after ``resend_after`` and bumped after ``bump_after``.
    A receipt is final ``confirmations`` blocks deep (its own counted) or, by ``finality``, once its block
    is not above the chain's safe or finalized block. ``fee_oracle`` is the contract that tells the L1 data
    fee; ``None`` on a chain without one.
    """

    max_fee_per_gas: int
    max_cost: int
    daily_budget: int
    min_base_fee: int = 10**6
    min_priority_fee: int = 0
    resend_after: timedelta = timedelta(seconds=30)
    bump_after: timedelta = timedelta(seconds=90)
    max_in_flight: int = 64
    confirmations: int = 1
    finality: Finality = "depth"
    fee_oracle: str | None = None
