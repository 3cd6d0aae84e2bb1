"""Admin pages of checkpoints: what was claimed, every step it took, and the transaction that carried it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from nodes.read_only_admin import NOTHING, ReadOnlyAdmin, ReadOnlyInline, chain_value, moment, page_link
from settlement.admin.checkpoint_requests import CheckpointRequests
from settlement.admin.links import transaction_value
from settlement.admin.money import shares_text, split_cell, with_unit
from settlement.admin.states import checkpoint_badge, transaction_badge
from settlement.admin.transaction import with_shown_hash
from settlement.models import Checkpoint, CheckpointEvent


class TimelineInline(ReadOnlyInline):
    """The steps of a checkpoint, first to last."""

    model = CheckpointEvent
    verbose_name_plural = "Timeline"
    fields = ("when", "was", "became", "reason")
    readonly_fields = fields
    ordering = ("id",)

    @admin.display(description="at (UTC)")
    def when(self, event: CheckpointEvent) -> SafeString:
        return moment(event.at)

    @admin.display(description="from")
    def was(self, event: CheckpointEvent) -> SafeString | str:
        return checkpoint_badge(event.from_state) if event.from_state else NOTHING

    @admin.display(description="to")
    def became(self, event: CheckpointEvent) -> SafeString:
        return checkpoint_badge(event.to_state)


class CheckpointColumns:
    """Columns that a checkpoint has in its list, on its page and below its session."""

    @admin.display(description="checkpoint", ordering="index")
    def page(self, checkpoint: Checkpoint) -> SafeString | str:
        return page_link(checkpoint, text=f"#{checkpoint.index}")

    @admin.display(description="session", ordering="session")
    def session_page(self, checkpoint: Checkpoint) -> SafeString | str:
        return page_link(checkpoint.session)

    @admin.display(description="state", ordering="state")
    def standing(self, checkpoint: Checkpoint) -> SafeString:
        return checkpoint_badge(checkpoint.state)

    @admin.display(description="tokens", ordering="from_token")
    def tokens(self, checkpoint: Checkpoint) -> SafeString:
        closing = ", closing" if checkpoint.closing else ""
        count, first, end = checkpoint.tokens, checkpoint.from_token, checkpoint.to_token
        return format_html('<span class="amount">{}: [{}, {}){}</span>', count, first, end, closing)

    @admin.display(description="host + treasury = gross", ordering="gross")
    def split(self, checkpoint: Checkpoint) -> SafeString | str:
        return split_cell(checkpoint)

    @admin.display(description="host / treasury")
    def shares(self, checkpoint: Checkpoint) -> str:
        return shares_text(checkpoint)

    @admin.display(description="transaction")
    def transaction_page(self, checkpoint: Checkpoint) -> SafeString | str:
        transaction = checkpoint.transaction
        return NOTHING if transaction is None else page_link(transaction, text=transaction.get_kind_display())

    @admin.display(description="transaction state")
    def transaction_standing(self, checkpoint: Checkpoint) -> SafeString | str:
        return NOTHING if checkpoint.transaction is None else transaction_badge(checkpoint.transaction.state)

    @admin.display(description="hash")
    def transaction_hash(self, checkpoint: Checkpoint) -> SafeString | str:
        return _hash(checkpoint, short=True)

    @admin.display(description="hash")
    def transaction_hash_in_full(self, checkpoint: Checkpoint) -> SafeString | str:
        return _hash(checkpoint, short=False)

    @admin.display(description="proof hash")
    def proof_hash_in_full(self, checkpoint: Checkpoint) -> SafeString | str:
        return chain_value(checkpoint.proof_hash)

    @admin.display(description="proof")
    def proof_size(self, checkpoint: Checkpoint) -> str:
        return NOTHING if checkpoint.proof is None else f"{len(checkpoint.proof)} bytes"


def with_money_and_hash(queryset: QuerySet[Any]) -> QuerySet[Any]:
    """Checkpoints with all that their columns need, in one query."""
    rows = with_unit(queryset, deployment="session__deployment", paid_in="session__payment_token")
    return with_shown_hash(rows, transaction="transaction").select_related("session", "transaction")


def _hash(checkpoint: Checkpoint, *, short: bool) -> SafeString | str:
    if checkpoint.transaction is None:
        return NOTHING
    shown: str = getattr(checkpoint, "shown_hash", None) or ""
    return transaction_value(shown, chain_id=checkpoint.transaction.chain_id, short=short)


@admin.register(Checkpoint)
class CheckpointAdmin(CheckpointRequests, CheckpointColumns, ReadOnlyAdmin):
    """Ranges of counted tokens on their way to being paid."""

    list_display = (
        "name",
        "session_page",
        "standing",
        "tokens",
        "split",
        "transaction_hash",
        "confirmed_at",
    )
    list_filter = ("state", "closing", "created_at")
    search_fields = ("session__client_session_id", "reason")
    search_help_text = "Job id, hash or depositor"
    job_id_lookup = "session__job_id"
    address_lookups = ("session__depositor",)
    hash_lookups = ("proof_hash", "transaction__attempts__hash")
    inlines = (TimelineInline,)
    fieldsets = (
        (None, {"fields": ("session_page", "index", "tokens", "standing", "reason", "retry_at", "retries")}),
        ("Money", {"fields": ("split", "shares", "confirmed_at")}),
        ("Transaction", {"fields": ("transaction_page", "transaction_standing", "transaction_hash_in_full")}),
        ("Proof", {"fields": ("prover", "proof_size", "proof_hash_in_full", "created_at")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_money_and_hash(super().get_queryset(request))

    @admin.display(description="checkpoint", ordering="index")
    def name(self, checkpoint: Checkpoint) -> str:
        return f"#{checkpoint.index}"


class CheckpointInline(CheckpointColumns, ReadOnlyInline):
    """The checkpoints of a session."""

    model = Checkpoint
    verbose_name_plural = "Checkpoints"
    fields = ("page", "standing", "tokens", "split", "shares", "transaction_hash", "reason")
    readonly_fields = fields
    ordering = ("index",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_money_and_hash(super().get_queryset(request))
