"""Admin pages of sessions, requests, counted tokens and API keys.

``SessionAdmin`` is registered by the settlement app, which adds what became of a session's tokens; models
in the engine have a module of their own, which is imported here for Django to find it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from jobs import api_keys, sessions
from jobs.models import ApiKey, InferenceRequest, RequestState, Session, SessionState, TokenUsage
from jobs.served_model_admin import ServedModelInEngineAdmin
from nodes.read_only_admin import NOTHING, BaseAdmin, ReadOnlyAdmin, ReadOnlyInline, badge, chain_value, page_link

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[ApiKey]

    def page_action(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...

else:
    # Unfold is untyped.
    from unfold.decorators import action as page_action

    ModelForm = forms.ModelForm

__all__ = [
    "ApiKeyAdmin",
    "InferenceRequestAdmin",
    "ServedModelInEngineAdmin",
    "SessionAdmin",
    "TokenUsageAdmin",
]

CLOSED_BY_OPERATOR = "closed by the operator"
_SESSION_COLOURS = {
    SessionState.OPEN: "info",
    SessionState.CLOSING: "warning",
    SessionState.COMPLETED: "success",
}
_REQUEST_COLOURS = {
    RequestState.RUNNING: "info",
    RequestState.FINISHED: "success",
    RequestState.FAILED: "danger",
}


class RequestInline(ReadOnlyInline):
    """The prompts of a session."""

    model = InferenceRequest
    verbose_name_plural = "Requests"
    fields = ("page", "path", "model", "standing", "prompt_tokens", "completion_tokens", "finish_reason", "created_at")
    readonly_fields = fields
    ordering = ("-created_at",)

    @admin.display(description="request")
    def page(self, request: InferenceRequest) -> SafeString | str:
        return page_link(request, text=str(request.pk)[:8])

    @admin.display(description="state")
    def standing(self, request: InferenceRequest) -> SafeString:
        return badge(request.state, colour=_REQUEST_COLOURS.get(RequestState(request.state), "neutral"))


class UsageInline(ReadOnlyInline):
    """The counted tokens of a request or session."""

    model = TokenUsage
    verbose_name_plural = "Token usage"
    fields = ("tokens", "count", "path", "created_at")
    readonly_fields = fields
    ordering = ("first_index",)

    @admin.display(description="token indices")
    def tokens(self, usage: TokenUsage) -> str:
        return token_range(usage)


def token_range(usage: TokenUsage) -> str:
    """The half-open range of a session's tokens that a row counts."""
    return f"[{usage.first_index}, {usage.first_index + usage.count})"


class SessionAdmin(ReadOnlyAdmin):
    """Sessions and the jobs that pay for them. Nothing can be edited; an open session can be closed."""

    list_display: tuple[str, ...] = (
        "name",
        "standing",
        "payer",
        "tokens",
        "budget",
        "checkpoint_count",
        "last_activity_at",
    )
    list_filter = ("state", "had_socket", "bound_by", ("job_id", admin.EmptyFieldListFilter), "created_at")
    search_fields = ("client_session_id",)
    search_help_text = "Job id, client session id or depositor"
    job_id_lookup = "job_id"
    address_lookups = ("depositor", "host", "payment_token")
    actions = ("close_now",)
    actions_detail = ("close_this_now",)
    inlines: ClassVar[tuple[type[ReadOnlyInline], ...]] = (RequestInline,)

    def has_close_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Who may change sessions by the permissions of the database may close them."""
        return bool(request.user.has_perm("jobs.change_session"))

    @admin.action(description="Close session now", permissions=["close"])
    def close_now(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        closed = sum(
            sessions.close_session(pk, reason=CLOSED_BY_OPERATOR) for pk in queryset.values_list("pk", flat=True)
        )
        messages.success(request, f"{closed} sessions closed; what they still owe is being claimed.")

    @page_action(
        description="Close session now",
        url_path="close",
        icon="stop_circle",
        permissions=["close"],
        dialog={
            "title": "Close this session now?",
            "description": "It accepts no further prompts. Tokens that are not claimed yet are claimed, "
            "and then the job is completed.",
            "form_submit_text": "Close session",
        },
    )
    def close_this_now(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        session = self.get_object(request, object_id)
        if session is not None and sessions.close_session(session.pk, reason=CLOSED_BY_OPERATOR):
            messages.success(request, "Closed; what is still owed is being claimed.")
        else:
            messages.warning(request, "This session was not open.")
        page = reverse("admin:jobs_session_change", args=[object_id])
        return HttpResponse(headers={"HX-Redirect": page})

    @admin.display(description="session", ordering="job_id")
    def name(self, session: Session) -> str:
        return f"job {session.job_id}" if session.job_id is not None else f"session {session.pk}, no job"

    @admin.display(description="state", ordering="state")
    def standing(self, session: Session) -> SafeString:
        return badge(session.state, colour=_SESSION_COLOURS.get(SessionState(session.state), "neutral"))

    @admin.display(description="depositor", ordering="depositor")
    def payer(self, session: Session) -> SafeString | str:
        return chain_value(session.depositor, short=True)

    @admin.display(description="tokens tracked / sealed / claimed", ordering="tokens_tracked")
    def tokens(self, session: Session) -> str:
        return f"{session.tokens_tracked} / {session.tokens_sealed} / {session.tokens_claimed}"

    @admin.display(description="tokens left", empty_value=NOTHING)
    def budget(self, session: Session) -> str | None:
        return None if session.tokens_left is None else f"{session.tokens_left} of {session.token_budget}"


@admin.register(InferenceRequest)
class InferenceRequestAdmin(ReadOnlyAdmin):
    """Prompts and what came of them. No text is kept."""

    list_display = (
        "short_id",
        "session_page",
        "path",
        "model",
        "standing",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
        "created_at",
    )
    list_filter = ("state", "path", ("api_key", admin.RelatedOnlyFieldListFilter), "created_at")
    list_select_related = ("session",)
    search_fields = ("client_request_id", "session__client_session_id")
    search_help_text = "Job id, or the client's own ids"
    job_id_lookup = "session__job_id"
    inlines = (UsageInline,)
    fieldsets = (
        (None, {"fields": ("id", "session_page", "api_key", "client_request_id", "path", "model", "standing")}),
        ("Tokens", {"fields": ("max_tokens", "prompt_tokens", "completion_tokens", "unpaid_tokens")}),
        ("Outcome", {"fields": ("finish_reason", "error", "created_at", "finished_at")}),
    )

    @admin.display(description="request", ordering="id")
    def short_id(self, request: InferenceRequest) -> str:
        return str(request.pk)[:8]

    @admin.display(description="session", ordering="session")
    def session_page(self, request: InferenceRequest) -> SafeString | str:
        return page_link(request.session)

    @admin.display(description="state", ordering="state")
    def standing(self, request: InferenceRequest) -> SafeString:
        return badge(request.state, colour=_REQUEST_COLOURS.get(RequestState(request.state), "neutral"))


@admin.register(TokenUsage)
class TokenUsageAdmin(ReadOnlyAdmin):
    """The ledger of counted tokens: append-only, in the database and here."""

    list_display = ("tokens", "count", "session_page", "request_page", "path", "created_at")
    list_filter = ("path", "created_at")
    list_select_related = ("session", "request")
    search_fields = ("session__client_session_id",)
    search_help_text = "Job id or client session id"
    job_id_lookup = "session__job_id"
    ordering = ("-id",)
    fields = ("session_page", "request_page", "tokens", "count", "path", "created_at")

    @admin.display(description="token indices", ordering="first_index")
    def tokens(self, usage: TokenUsage) -> str:
        return token_range(usage)

    @admin.display(description="session", ordering="session")
    def session_page(self, usage: TokenUsage) -> SafeString | str:
        return page_link(usage.session)

    @admin.display(description="request")
    def request_page(self, usage: TokenUsage) -> SafeString | str:
        return page_link(usage.request, text=str(usage.request_id)[:8])


class ApiKeyForm(ModelForm):
    """What an operator says of a key."""

    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("This lies in the past. To end a key now, revoke it.")
        return expires_at


@admin.register(ApiKey)
class ApiKeyAdmin(BaseAdmin):
    """Keys of direct customers. A key is shown once, when it is made; limits can be changed, keys only revoked."""

    list_display = ("name", "beginning", "standing", "may_do", "tokens_of_today", "last_used_at", "expires_at")
    list_filter = ("may_infer", "may_read_usage", ("revoked_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "prefix")
    form = ApiKeyForm
    actions = ("revoke_now",)
    readonly_fields = ("beginning", "created_at", "revoked_at", "last_used_at")
    fieldsets = (
        (None, {"fields": ("name", "beginning", "expires_at", "created_at", "revoked_at", "last_used_at")}),
        ("May be used for", {"fields": ("may_infer", "may_list_models", "may_read_usage")}),
        ("Limits", {"fields": ("requests_per_minute", "tokens_per_minute", "tokens_per_day")}),
    )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Its requests name it: a key is revoked, not deleted."""
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            obj.save(update_fields=form.changed_data or None)
        else:
            request.new_api_key = api_keys.issue(obj)  # type: ignore[attr-defined]  # for the answer of this request only

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """The key itself, on a page that is not kept anywhere: neither as a message nor by the browser."""
        context = {
            **self.admin_site.each_context(request),
            "title": "New API key",
            "key": obj,
            "secret": getattr(request, "new_api_key", ""),
        }
        return TemplateResponse(
            request, "admin/jobs/apikey/new_key.html", context, headers={"Cache-Control": "no-store"}
        )

    @admin.action(description="Revoke", permissions=["change"])
    def revoke_now(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        revoked = sum(api_keys.revoke(pk) for pk in queryset.values_list("pk", flat=True))
        messages.success(request, f"{revoked} keys revoked.")

    @admin.display(description="key", ordering="prefix")
    def beginning(self, key: ApiKey) -> str:
        return f"{key.prefix}…" if key.prefix else NOTHING

    @admin.display(description="state")
    def standing(self, key: ApiKey) -> SafeString:
        if key.revoked_at is not None:
            return badge("revoked", colour="danger")
        expired = key.expires_at is not None and key.expires_at <= timezone.now()
        return badge("expired", colour="warning") if expired else badge("usable", colour="success")

    @admin.display(description="may be used for")
    def may_do(self, key: ApiKey) -> str:
        return ", ".join(api_keys.scopes_of(key))

    @admin.display(description="tokens today")
    def tokens_of_today(self, key: ApiKey) -> str:
        used, _ = api_keys.tokens_today(key.pk, now=timezone.now())
        return str(used) if key.tokens_per_day is None else f"{used} of {key.tokens_per_day}"
