"""What a transaction will cost before it is asked for, and what an account has spent. In wei.

Guarantees that the L1 data fee of a rollup, which no fee cap bounds, is in every figure. Promises no
price: the next block may ask for more, up to the fee cap. Reads the chain and the table; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median_low
from typing import Any

from eth_utils.crypto import keccak

from settlement.chain.client import CallReverted, ChainClient, NodeRefused
from settlement.chain.contracts import Call, CodecError
from settlement.models import Attempt, Receipt, TransactionKind, TransactionState
from settlement.txmanager.fees import Prices, gas_limit_for, market_fees, prices
from settlement.txmanager.limits import Limits

_BUDGET_PERIOD = timedelta(hours=24)
_USUAL_OF = 25
# Everything of a signed transaction but its calldata; bytes that do not compress, like a signature's.
_ENVELOPE = b"".join(keccak(bytes([index])) for index in range(4))[:120]
_L1_MARGIN_PERCENT = 25


class OracleFailed(Exception):
    """The contract that tells the L1 data fee does not; without it nothing is known of what a transaction costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """``gas`` units are expected, ``gas_limit`` would be signed; ``fee_per_gas`` is today's, ``fee_cap`` the most."""

    gas: int
    gas_limit: int
    fee_per_gas: int
    fee_cap: int
    l1_fee: int

    @property
    def expected_cost(self) -> int:
        """wei, at today's base fee and tip."""
        return self.gas * self.fee_per_gas + self.l1_fee

    @property
    def worst_cost(self) -> int:
        """wei, all of the gas limit at the fee cap."""
        return self.gas_limit * self.fee_cap + self.l1_fee


def quote(client: ChainClient, call: Call[Any], *, sender: str, limits: Limits) -> Quote:
    """What ``call`` would cost. Raises ``CallReverted``, ``NodeRefused``, ``OracleFailed`` or ``ChainUnavailable``."""
    gas = client.estimate_gas(call, sender=sender)
    market = read_prices(client, limits=limits)
    return Quote(
        gas=gas,
        gas_limit=gas_limit_for(gas),
        fee_per_gas=market.fee_per_gas,
        fee_cap=market_fees(market, limits=limits).max_fee_per_gas,
        l1_fee=l1_fee(client, call.data, limits=limits),
    )


def usual_cost(client: ChainClient, *, kind: TransactionKind, sender: str, limits: Limits) -> int | None:
    """wei that a transaction of ``kind`` costs at today's prices, by its last receipts; ``None`` without any."""
    last = list(
        Receipt.objects.filter(
            transaction__kind=kind, transaction__chain_id=client.chain_id, transaction__sender=sender, succeeded=True
        )
        .order_by("-id")
        .values_list("gas_used", "l1_fee")[:_USUAL_OF]
    )
    if not last:
        return None
    market = read_prices(client, limits=limits)
    gas = median_low([gas_used for gas_used, _ in last])
    return gas * market.fee_per_gas + median_low([fee for _, fee in last])


def read_prices(client: ChainClient, *, limits: Limits) -> Prices:
    """What the chain asks for now."""
    head = client.head()
    return prices(base_fee=head.base_fee, priority_fee=client.priority_fee(), head=head.number, limits=limits)


def l1_fee(client: ChainClient, data: bytes, *, limits: Limits) -> int:
    """wei to set aside for the L1 data fee of a transaction with this calldata; 0 on a chain without one.

    Raises ``OracleFailed``.
    """
    if limits.fee_oracle is None:
        return 0
    try:
        told = client.l1_fee(limits.fee_oracle, data + _ENVELOPE)
    except (CallReverted, CodecError, NodeRefused) as failure:
        raise OracleFailed(
            f"the L1 fee oracle {limits.fee_oracle} (FABSTIR_L1_FEE_ORACLE) does not tell its fee: {failure}"
        ) from failure
    # What is charged is of the block that mines it.
    return told + told * _L1_MARGIN_PERCENT // 100


def spent(*, chain_id: int, sender: str, now: datetime) -> int:
    """wei paid in the 24 hours before ``now``, and what is on its way at its worst."""
    mined = Receipt.objects.filter(
        transaction__chain_id=chain_id, transaction__sender=sender, block_time__gte=now - _BUDGET_PERIOD
    ).values_list("gas_used", "effective_gas_price", "l1_fee")
    paid = sum(gas * price + fee for gas, price, fee in mined.iterator())
    worst: dict[int, int] = {}
    for attempt in Attempt.objects.filter(
        transaction__chain_id=chain_id,
        transaction__sender=sender,
        transaction__state__in=(TransactionState.IN_PROGRESS, TransactionState.SENT),
    ).only("transaction_id", "gas_limit", "max_fee_per_gas", "l1_fee"):
        worst[attempt.transaction_id] = max(worst.get(attempt.transaction_id, 0), attempt.worst_cost)
    return paid + sum(worst.values())
