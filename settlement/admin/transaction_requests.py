"""What an operator may ask on a transaction's page: to offer more for it, or to cancel it, with a reason.

Guarantees that only who may change transactions by the database's permissions can ask, and that each
request is audited under the user's name. Carries nothing out; the broadcaster does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from nodes.read_only_admin import ReadOnlyInline, moment
from settlement.models import TransactionEvent
from settlement.txmanager import commands

if TYPE_CHECKING:
    BaseDialogForm = forms.Form

    def page_action(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...

else:
    # Unfold is untyped.
    from unfold.decorators import action as page_action
    from unfold.forms import BaseDialogForm


class ReasonForm(BaseDialogForm):
    """Why."""

    reason = forms.CharField(max_length=300, widget=forms.TextInput(attrs={"class": "w-full"}))


class TransactionRequests:
    """Buttons for a transaction's page."""

    actions_detail = ("bump_this", "cancel_this")

    def has_operate_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Who may change transactions by the permissions of the database may ask for this."""
        return bool(request.user.has_perm("settlement.change_transaction"))

    @page_action(
        description="Offer more",
        url_path="bump",
        icon="speed",
        permissions=["operate"],
        dialog={
            "title": "Offer more for this transaction?",
            "description": "It is signed again with the same nonce and higher fees, within the limits that are set.",
            "form_submit_text": "Offer more",
        },
    )
    def bump_this(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        if commands.bump(int(object_id), actor=request.user.get_username()):
            messages.success(request, "The next broadcast offers more.")
        else:
            messages.warning(request, "This transaction does not wait to be mined, or this is asked already.")
        return _back(object_id)

    @page_action(
        description="Cancel",
        url_path="cancel",
        icon="block",
        permissions=["operate"],
        dialog={
            "title": "Cancel this transaction?",
            "description": "What is queued never runs. What a node has is replaced by nothing under the same nonce; "
            "it may be mined all the same.",
            "form_class": ReasonForm,
            "form_submit_text": "Cancel the transaction",
        },
    )
    def cancel_this(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        reason = form.cleaned_data["reason"]
        if commands.cancel(int(object_id), actor=request.user.get_username(), reason=reason):
            messages.success(request, "Cancelled, or being replaced by nothing.")
        else:
            messages.warning(request, "Too late, or being cancelled already.")
        return _back(object_id)


class EventInline(ReadOnlyInline):
    """What was done with a transaction out of the ordinary."""

    model = TransactionEvent
    verbose_name_plural = "Out of the ordinary"
    fields = ("time", "what", "actor", "reason")
    readonly_fields = fields
    ordering = ("id",)

    def time(self, event: TransactionEvent) -> str:
        return moment(event.at)


def _back(object_id: str) -> HttpResponse:
    return HttpResponse(headers={"HX-Redirect": reverse("admin:settlement_transaction_change", args=[object_id])})
