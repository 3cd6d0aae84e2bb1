"""Admin pages of earnings: every movement of money that the chain's events stated."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import BadRequest, PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString

from nodes.read_only_admin import ReadOnlyAdmin, ReadOnlyInline, badge, chain_value, page_link
from settlement import exports, statements
from settlement.admin.links import address_value, block_value, transaction_value
from settlement.admin.money import amount_cell, with_unit
from settlement.explorer import chain_id_of
from settlement.models import Earning, EarningKind
from settlement.statements import Grouping

_COLOURS = {
    EarningKind.HOST: "success",
    EarningKind.TREASURY: "info",
    EarningKind.GAS: "warning",
    EarningKind.WITHDRAWAL: "success",
    EarningKind.SWEEP: "success",
}
_ROWS = "rows"


class EarningColumns:
    """Columns that an earning has in its list, on its page and below its session."""

    @admin.display(description="kind", ordering="kind")
    def standing(self, earning: Earning) -> SafeString:
        if earning.reverses_id:
            return badge(f"{earning.kind} taken back", colour="danger")
        return badge(earning.kind, colour=_COLOURS.get(EarningKind(earning.kind), "neutral"))

    @admin.display(description="amount", ordering="amount")
    def formatted_amount(self, earning: Earning) -> SafeString | str:
        return amount_cell(earning, earning.amount, token=earning.token)

    @admin.display(description="base units")
    def exact_amount(self, earning: Earning) -> str:
        return str(earning.signed_amount)

    @admin.display(description="takes back")
    def taken_back(self, earning: Earning) -> SafeString | str:
        return page_link(earning.reverses)

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

    change_list_template = "admin/settlement/earning/change_list.html"
    list_display = ("id", "standing", "formatted_amount", "session_page", "hash_short", "block", "at")
    list_filter = ("kind", "created_at")
    list_select_related = ("session",)
    search_fields = ("deployment", "session__client_session_id")
    search_help_text = "Job id, hash or address"
    job_id_lookup = "session__job_id"
    address_lookups = ("token", "session__depositor")
    hash_lookups = ("transaction_hash", "block_hash")
    fieldsets = (
        (None, {"fields": ("standing", "formatted_amount", "exact_amount", "token_in_full", "session_page")}),
        ("Event", {"fields": ("hash_in_full", "log_index", "block", "block_hash_in_full", "at")}),
        ("Record", {"fields": ("taken_back", "deployment", "created_at")}),
    )

    def get_urls(self) -> list[URLPattern]:
        own = path("export/<str:what>/", self.admin_site.admin_view(self.export), name="settlement_earning_export")
        return [own, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        titles = {_ROWS: "Every movement", **{kind.value: f"By {kind.value}" for kind in Grouping}}
        links = [
            {"title": f"{title} (CSV)", "href": reverse("admin:settlement_earning_export", args=[what])}
            for what, title in titles.items()
        ]
        return super().changelist_view(request, {"exports": links, **(extra_context or {})})

    def export(self, request: HttpRequest, what: str) -> HttpResponse | StreamingHttpResponse:
        """CSV of every movement, or of sums by token, job or day, sent as it is read."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if what == _ROWS:
            pieces = exports.csv_lines(exports.earning_records(Earning.objects.all()), columns=exports.EARNING_COLUMNS)
        elif what in set(Grouping):
            records = exports.statement_records(statements.statement(by=Grouping(what)))
            pieces = exports.csv_lines(records, columns=exports.STATEMENT_COLUMNS)
        else:
            raise BadRequest(f"there is no export {what!r}")
        disposition = {"Content-Disposition": f'attachment; filename="earnings-{what}.csv"'}
        return StreamingHttpResponse(pieces, content_type="text/csv; charset=utf-8", headers=disposition)

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
