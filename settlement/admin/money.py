"""Which unit a row's amounts are in and what its marketplace's fee is, read with the rows themselves.

Guarantees that a list of rows needs no query per row for this, and that a token is called USDC only
if the contracts read from the chain name it so. Asks the chain for nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

from django.db.models import Exists, Model, OuterRef, QuerySet, Subquery
from django.utils.html import format_html
from django.utils.safestring import SafeString

from nodes.read_only_admin import NOTHING
from settlement.amounts import Unit, format_amount, format_shares, format_split, treasury_share, unit_of
from settlement.models import Checkpoint, ContractDeployment

Row = TypeVar("Row", bound=Model)


def with_unit(queryset: QuerySet[Row], *, deployment: str, paid_in: str) -> QuerySet[Row]:
    """Rows that know their unit and fee; the arguments are lookups of the row's deployment and token."""
    contracts = ContractDeployment.objects.filter(deployment=OuterRef(deployment)).order_by()
    marketplace = contracts.filter(name="job_marketplace")
    annotated: QuerySet[Any] = queryset.annotate(
        paid_in_usdc=Exists(contracts.filter(name="usdc", address=OuterRef(paid_in))),
        marketplace_fee=Subquery(marketplace.values("fee_basis_points")[:1]),
    )
    return annotated


def amount_cell(row: Model, amount: int | None, *, token: str) -> SafeString | str:
    """An amount of a row that ``with_unit`` read."""
    if amount is None:
        return NOTHING
    return format_html('<span class="amount">{}</span>', format_amount(amount, row_unit(row, token=token)))


def split_cell(checkpoint: Checkpoint) -> SafeString | str:
    """A claim's host + treasury = gross, as the chain's events stated them."""
    if checkpoint.host_amount is None or checkpoint.treasury_amount is None:
        return NOTHING
    unit = row_unit(checkpoint, token=checkpoint.session.payment_token)
    text = format_split(host=checkpoint.host_amount, treasury=checkpoint.treasury_amount, unit=unit)
    return format_html('<span class="amount">{}</span>', text)


def shares_text(checkpoint: Checkpoint) -> str:
    """The percentages behind a claim's split, or that it does not follow the present fee."""
    fee: int | None = getattr(checkpoint, "marketplace_fee", None)
    if fee is None:
        return "The fee has not been read from the chain yet."
    if checkpoint.host_amount is None or checkpoint.treasury_amount is None:
        return f"{format_shares(fee)} at the present fee"
    gross = checkpoint.host_amount + checkpoint.treasury_amount
    if treasury_share(gross, fee_basis_points=fee) != checkpoint.treasury_amount:
        return f"not split by the present fee ({format_shares(fee)})"
    return format_shares(fee)


def row_unit(row: Model, *, token: str) -> Unit:
    """The unit of a row that ``with_unit`` read."""
    return unit_of(token, is_usdc=bool(getattr(row, "paid_in_usdc", False)))
