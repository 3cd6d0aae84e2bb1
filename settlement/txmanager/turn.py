"""A turn at an account: what a broadcaster works with while it holds the lease, and how it signs.

Guarantees that an attempt is signed only within the operator's limits. Stores and sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Prefetch
from django.utils import timezone
from hexbytes import HexBytes

from settlement.chain.client import ChainClient
from settlement.chain.signer import Signer, UnsignedTransaction
from settlement.models import Attempt, AttemptKind, AttemptState, Transaction
from settlement.models.transaction import TransactionQuerySet
from settlement.txmanager import quotes
from settlement.txmanager.fees import Fees, Prices, gas_limit_for
from settlement.txmanager.limits import Limits
from settlement.txmanager.senders import Lease

# A transfer of nothing to oneself; what cancels a transaction and fills a gap.
NOTHING_GAS_LIMIT = gas_limit_for(21_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an attempt offers. ``l1_fee`` in wei."""

    fees: Fees
    gas_limit: int
    l1_fee: int

    @property
    def worst_cost(self) -> int:
        """wei"""
        return self.gas_limit * self.fees.max_fee_per_gas + self.l1_fee


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One broadcaster's turn."""

    client: ChainClient
    signer: Signer
    limits: Limits
    lease: Lease

    @property
    def sender(self) -> str:
        return self.lease.address

    @property
    def rows(self) -> TransactionQuerySet:
        """The account's transactions on this chain."""
        return Transaction.objects.filter(chain_id=self.lease.chain_id, sender=self.lease.address)

    def unmined(self) -> list[Transaction]:
        """What holds a nonce and is not known to be mined, in the order of nonces, attempts at hand."""
        live = Attempt.objects.exclude(state=AttemptState.DISPLACED).order_by("id")
        return in_nonce_order(self.rows.unmined().prefetch_related(Prefetch("attempts", queryset=live)))

    def prices(self) -> Prices:
        """What the chain asks for now."""
        return quotes.read_prices(self.client, limits=self.limits)

    def budget_left(self) -> int:
        """wei that may still be spent today; negative if more is on its way."""
        spent = quotes.spent(chain_id=self.lease.chain_id, sender=self.sender, now=timezone.now())
        return self.limits.daily_budget - spent

    def sign(self, row: Transaction, *, nonce: int, terms: Terms, kind: AttemptKind = AttemptKind.CALL) -> Attempt:
        """An attempt that is not stored yet. Raises ``SigningRefused``."""
        cancels = kind == AttemptKind.CANCEL
        signed = self.signer.sign(
            UnsignedTransaction(
                chain_id=row.chain_id,
                nonce=nonce,
                to=self.sender if cancels else row.to,
                data=b"" if cancels else bytes(HexBytes(row.data)),
                value=0 if cancels else row.value,
                gas_limit=terms.gas_limit,
                max_fee_per_gas=terms.fees.max_fee_per_gas,
                max_priority_fee_per_gas=terms.fees.max_priority_fee_per_gas,
            )
        )
        return Attempt(
            transaction=row,
            kind=kind,
            nonce=nonce,
            hash="0x" + signed.hash.hex(),
            raw="0x" + signed.raw.hex(),
            gas_limit=terms.gas_limit,
            max_fee_per_gas=terms.fees.max_fee_per_gas,
            max_priority_fee_per_gas=terms.fees.max_priority_fee_per_gas,
            l1_fee=terms.l1_fee,
        )


def cost_limit_of(row: Transaction, *, limits: Limits) -> int:
    """wei that ``row`` may cost at most."""
    return limits.max_cost if row.cost_limit is None else min(limits.max_cost, row.cost_limit)


def in_nonce_order(rows: TransactionQuerySet) -> list[Transaction]:
    """Rows that hold a nonce, sorted here: for the database's sorting SQLite would walk all there ever were."""
    return sorted(rows.order_by(), key=lambda row: row.nonce or 0)
