"""Admin pages of withdrawals: what was asked for, and a page that previews a withdrawal before it is made.

Guarantees that nothing moves without a confirmation that showed amounts, gas and net; that only those who
may add withdrawals reach it; and that a form sent twice withdraws once.
"""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from nodes.read_only_admin import NOTHING, ReadOnlyAdmin, badge, page_link
from settlement import withdrawals
from settlement.admin.links import address_value
from settlement.amounts import ETH, format_amount
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.explorer import chain_id_of
from settlement.host_chain import HostChain, NoDeployment, host_chain
from settlement.models import Withdrawal, WithdrawalState
from settlement.withdrawals import Preview, WithdrawalRefused

_COLOURS = {
    WithdrawalState.REQUESTED: "neutral",
    WithdrawalState.SENT: "info",
    WithdrawalState.FINAL: "success",
    WithdrawalState.FAILED: "danger",
}
_MAY_WITHDRAW = "settlement.add_withdrawal"


class WithdrawalForm(forms.Form):
    """Which token, how much, and the name of the request."""

    token = forms.CharField(max_length=42, help_text="native, usdc, all, or a token's address")
    amount = forms.IntegerField(min_value=1, required=False, help_text="base units; everything if empty")
    force = forms.BooleanField(required=False)
    request_key = forms.UUIDField(widget=forms.HiddenInput)


@admin.register(Withdrawal)
class WithdrawalAdmin(ReadOnlyAdmin):
    """Requests to move earnings."""

    change_list_template = "admin/settlement/withdrawal/change_list.html"
    list_display = ("id", "kind", "standing", "moved", "requested_by", "transaction_page", "created_at")
    list_filter = ("state", "kind", "created_at")
    list_select_related = ("transaction",)
    search_fields = ("requested_by", "reason", "deployment")
    hash_lookups = ("transaction__attempts__hash",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "kind",
                    "standing",
                    "reason",
                    "token_addresses",
                    "moved",
                    "recipient",
                    "forced",
                    "transaction_page",
                )
            },
        ),
        ("Record", {"fields": ("requested_by", "request_key", "deployment", "created_at", "finished_at")}),
    )

    def get_urls(self) -> list[URLPattern]:
        own = path("withdraw/", self.admin_site.admin_view(self.withdraw), name="settlement_withdrawal_withdraw")
        return [own, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"may_withdraw": request.user.has_perm(_MAY_WITHDRAW), **(extra_context or {})}
        return super().changelist_view(request, context)

    def withdraw(self, request: HttpRequest) -> HttpResponse:
        """A form; posted, its preview; posted with ``confirm``, the withdrawal."""
        if not request.user.has_perm(_MAY_WITHDRAW):
            raise PermissionDenied
        posted = request.method == "POST"
        form = WithdrawalForm(request.POST if posted else None, initial={"token": "all", "request_key": uuid.uuid4()})
        context: dict[str, Any] = {"form": form, "preview": None, "problem": ""}
        if posted and form.is_valid():
            try:
                chain = host_chain()
                if "confirm" in request.POST:
                    return self._confirmed(request, chain, form.cleaned_data)
                context["preview"] = _shown(_previewed(chain, form.cleaned_data))
            except (WithdrawalRefused, ChainUnavailable, NodeRefused, NoDeployment) as refused:
                context["problem"] = str(refused)
        return TemplateResponse(
            request,
            "admin/settlement/withdrawal/withdraw.html",
            {**self.admin_site.each_context(request), "title": "Withdraw earnings", "opts": self.opts, **context},
        )

    def _confirmed(self, request: HttpRequest, chain: HostChain, asked: dict[str, Any]) -> HttpResponse:
        row = withdrawals.request(
            chain,
            tokens=withdrawals.tokens_named(chain, asked["token"]),
            amount=asked["amount"],
            request_key=f"admin:{asked['request_key']}",
            actor=request.user.get_username(),
            force=asked["force"],
        )
        messages.success(request, f"{row} is {row.state}. It is booked once its block is final.")
        return HttpResponseRedirect(reverse("admin:settlement_withdrawal_change", args=[row.pk]))

    @admin.display(description="state", ordering="state")
    def standing(self, row: Withdrawal) -> SafeString:
        return badge(row.state, colour=_COLOURS[WithdrawalState(row.state)])

    @admin.display(description="amount")
    def moved(self, row: Withdrawal) -> str:
        return "everything" if row.amount is None else f"{row.amount} base units"

    @admin.display(description="tokens")
    def token_addresses(self, row: Withdrawal) -> SafeString | str:
        chain_id = chain_id_of(row.deployment)
        cells = ((address_value(token, chain_id=chain_id),) for token in row.tokens)
        return format_html_join("", "<div>{}</div>", cells) or NOTHING

    @admin.display(description="transaction")
    def transaction_page(self, row: Withdrawal) -> SafeString | str:
        return NOTHING if row.transaction is None else page_link(row.transaction, text=row.transaction.state)


def _previewed(chain: HostChain, asked: dict[str, Any]) -> Preview:
    return withdrawals.preview(chain, tokens=withdrawals.tokens_named(chain, asked["token"]), amount=asked["amount"])


def _shown(preview: Preview) -> dict[str, Any]:
    """A preview in the words of the page."""
    sign = "-" if preview.net_native < 0 else ""
    return {
        "holdings": [
            {
                "token": holding.token,
                "balance": format_amount(holding.balance, holding.unit),
                "amount": format_amount(holding.amount, holding.unit),
            }
            for holding in preview.holdings
        ],
        "gas": preview.gas,
        "expected_cost": format_amount(preview.expected_cost, ETH),
        "worst_cost": format_amount(preview.worst_cost, ETH),
        "net_native": f"{sign}{format_amount(abs(preview.net_native), ETH)}",
        "objection": preview.objection,
        "forceable": preview.forceable,
        "possible": not preview.objection or preview.forceable,
    }
