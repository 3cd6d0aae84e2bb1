"""Admin pages of earnings: every movement of money that the chain's events stated."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from nodes.read_only_admin import ReadOnlyAdmin, ReadOnlyInline, badge, chain_value, page_link
from settlement.admin.links import address_value, block_value, transaction_value
from settlement.admin.money import amount_cell, with_unit
from settlement.explorer import chain_id_of
from settlement.models import Earning, EarningKind

_COLOURS = {
    EarningKind.HOST: "success",
    EarningKind.TREASURY: "info",
    EarningKind.GAS: "warning",
    EarningKind.WITHDRAWAL: "success",
}


class EarningColumns:
    """Columns that an earning has in its list, on its page and below its session."""

    @admin.display(description="kind", ordering="kind")
    def standing(self, earning: Earning) -> SafeString:
        return badge(earning.kind, colour=_COLOURS.get(EarningKind(earning.kind), "neutral"))

    @admin.display(description="amount", ordering="amount")
    def formatted_amount(self, earning: Earning) -> SafeString | str:
        return amount_cell(earning, earning.amount, token=earning.token)

    @admin.display(description="base units")
    def exact_amount(self, earning: Earning) -> str:
        return str(earning.amount)

    @admin.display(description="session", ordering="session")
    def session_page(self, earning: Earning) -> SafeString | str:
        return page_link(earning.session)

    @admin.display(description="transaction", ordering="transaction_hash")
    def hash_short(self, earning: Earning) -> SafeString | str:
        return transaction_value(earning.transaction_hash, chain_id=chain_id_of(earning.deployment), short=True)

    @admin.display(description="transaction")
    def hash_in_full(self, earning: Earning) -> SafeString | str:
        return transaction_value(earning.transaction_hash, chain_id=chain_id_of(earning.deployment))

    @admin.display(description="token")
    def token_short(self, earning: Earning) -> SafeString | str:
        return address_value(earning.token, chain_id=chain_id_of(earning.deployment), short=True)

    @admin.display(description="token")
    def token_in_full(self, earning: Earning) -> SafeString | str:
        return address_value(earning.token, chain_id=chain_id_of(earning.deployment))

    @admin.display(description="block", ordering="block_number")
    def block(self, earning: Earning) -> SafeString | str:
        return block_value(earning.block_number, chain_id=chain_id_of(earning.deployment))

    @admin.display(description="block hash")
    def block_hash_in_full(self, earning: Earning) -> SafeString | str:
        return chain_value(earning.block_hash)


@admin.register(Earning)
class EarningAdmin(EarningColumns, ReadOnlyAdmin):
    """Money that moved, one row per event."""

    list_display = ("id", "standing", "formatted_amount", "session_page", "hash_short", "block", "created_at")
    list_filter = ("kind", "created_at")
    list_select_related = ("session",)
    search_fields = ("deployment", "session__client_session_id")
    search_help_text = "Job id, hash or address"
    job_id_lookup = "session__job_id"
    address_lookups = ("token", "session__depositor")
    hash_lookups = ("transaction_hash", "block_hash")
    fieldsets = (
        (None, {"fields": ("standing", "formatted_amount", "exact_amount", "token_in_full", "session_page")}),
        ("Event", {"fields": ("hash_in_full", "log_index", "block", "block_hash_in_full")}),
        ("Record", {"fields": ("deployment", "created_at")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_unit(super().get_queryset(request), deployment="deployment", paid_in="token")


class EarningInline(EarningColumns, ReadOnlyInline):
    """The money that a session moved."""

    model = Earning
    verbose_name_plural = "Earnings"
    fields = ("standing", "formatted_amount", "token_short", "hash_short", "block")
    readonly_fields = fields
    ordering = ("id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_unit(super().get_queryset(request), deployment="deployment", paid_in="token")
