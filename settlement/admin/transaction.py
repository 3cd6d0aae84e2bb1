"""Admin pages of transactions with their attempts and receipt: what shall happen, what was signed, what did."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F, Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from nodes.read_only_admin import NOTHING, ReadOnlyAdmin, ReadOnlyInline, badge, chain_value, page_link
from settlement.admin.links import address_value, block_value, transaction_value
from settlement.admin.states import attempt_badge, transaction_badge
from settlement.admin.transaction_requests import EventInline, TransactionRequests
from settlement.amounts import ETH, GWEI, format_amount
from settlement.models import Attempt, Checkpoint, Receipt, Sender, Transaction


def with_shown_hash(queryset: QuerySet[Any], *, transaction: str = "") -> QuerySet[Any]:
    """Rows with the hash to show: the mined attempt's, else the latest one's. ``transaction`` is its lookup."""
    prefix = f"{transaction}__" if transaction else ""
    latest = Attempt.objects.filter(transaction=OuterRef(f"{prefix}pk")).order_by("-id").values("hash")[:1]
    rows: QuerySet[Any] = queryset.annotate(shown_hash=Coalesce(F(f"{prefix}receipt__attempt__hash"), Subquery(latest)))
    return rows


def fee_text(receipt: Receipt) -> str:
    """What a receipt says was paid for gas, with the calculation."""
    price = format_amount(receipt.effective_gas_price, GWEI)
    return f"{format_amount(receipt.fee, ETH)} ({receipt.gas_used} gas at {price})"


class AttemptColumns:
    """Columns that an attempt has on its own page and below its transaction."""

    @admin.display(description="hash", ordering="hash")
    def hash_in_full(self, attempt: Attempt) -> SafeString | str:
        return transaction_value(attempt.hash, chain_id=attempt.transaction.chain_id)

    @admin.display(description="hash", ordering="hash")
    def short_hash(self, attempt: Attempt) -> SafeString | str:
        return transaction_value(attempt.hash, chain_id=attempt.transaction.chain_id, short=True)

    @admin.display(description="state", ordering="state")
    def standing(self, attempt: Attempt) -> SafeString:
        return attempt_badge(attempt.state)

    @admin.display(description="fee cap", ordering="max_fee_per_gas")
    def fee_cap(self, attempt: Attempt) -> SafeString:
        return _gwei(attempt.max_fee_per_gas)

    @admin.display(description="tip cap", ordering="max_priority_fee_per_gas")
    def tip_cap(self, attempt: Attempt) -> SafeString:
        return _gwei(attempt.max_priority_fee_per_gas)


class AttemptInline(AttemptColumns, ReadOnlyInline):
    """The signed attempts of a transaction, first to last."""

    model = Attempt
    verbose_name_plural = "Attempts"
    fields = ("hash_in_full", "kind", "standing", "gas_limit", "fee_cap", "tip_cap", "sends", "sent_at", "error")
    readonly_fields = fields
    ordering = ("id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("transaction")


class ReceiptInline(ReadOnlyInline):
    """The receipt of a transaction."""

    model = Receipt
    verbose_name_plural = "Receipt"
    fields = ("outcome", "block", "block_hash_in_full", "block_time", "fee", "revert_reason")
    readonly_fields = fields
    ordering = ("id",)

    @admin.display(description="outcome")
    def outcome(self, receipt: Receipt) -> SafeString:
        return _outcome(receipt)

    @admin.display(description="block")
    def block(self, receipt: Receipt) -> SafeString | str:
        return block_value(receipt.block_number, chain_id=receipt.transaction.chain_id)

    @admin.display(description="block hash")
    def block_hash_in_full(self, receipt: Receipt) -> SafeString | str:
        return chain_value(receipt.block_hash, short=True)

    @admin.display(description="fee")
    def fee(self, receipt: Receipt) -> str:
        return fee_text(receipt)


@admin.register(Transaction)
class TransactionAdmin(TransactionRequests, ReadOnlyAdmin):
    """Calls that this node wants on the chain, once each."""

    list_display = ("name", "standing", "served", "nonce", "sender_short", "shown_hash_short", "retries", "created_at")
    list_filter = ("state", "kind", "chain_id", "created_at")
    list_select_related = ("checkpoint__session",)
    search_fields = ("key", "reason")
    search_help_text = "Job id, hash or address"
    job_id_lookup = "checkpoint__session__job_id"
    address_lookups = ("sender", "to")
    hash_lookups = ("attempts__hash",)
    fieldsets = (
        (None, {"fields": ("kind", "standing", "served", "reason", "revert", "retries", "retry_at")}),
        ("Call", {"fields": ("chain_id", "sender_in_full", "to_in_full", "value_in_eth", "nonce", "calldata")}),
        ("Limits", {"fields": ("priority", "cost_limit_in_eth", "bump_requested_at", "cancel_requested_at")}),
        ("Record", {"fields": ("shown_hash_in_full", "idempotency_key", "created_at", "updated_at")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_shown_hash(super().get_queryset(request))

    def get_inlines(self, request: HttpRequest, obj: Transaction | None) -> list[type[Any]]:
        inlines: list[type[Any]] = [AttemptInline]
        if hasattr(obj, "receipt"):
            inlines.append(ReceiptInline)
        return [*inlines, EventInline]

    @admin.display(description="transaction", ordering="kind")
    def name(self, transaction: Transaction) -> str:
        return transaction.get_kind_display()

    @admin.display(description="state", ordering="state")
    def standing(self, transaction: Transaction) -> SafeString:
        return transaction_badge(transaction.state)

    @admin.display(description="serves")
    def served(self, transaction: Transaction) -> SafeString | str:
        checkpoint: Checkpoint | None = getattr(transaction, "checkpoint", None)
        return page_link(checkpoint)

    @admin.display(description="sender", ordering="sender")
    def sender_short(self, transaction: Transaction) -> SafeString | str:
        return address_value(transaction.sender, chain_id=transaction.chain_id, short=True)

    @admin.display(description="sender")
    def sender_in_full(self, transaction: Transaction) -> SafeString | str:
        return address_value(transaction.sender, chain_id=transaction.chain_id)

    @admin.display(description="to")
    def to_in_full(self, transaction: Transaction) -> SafeString | str:
        return address_value(transaction.to, chain_id=transaction.chain_id)

    @admin.display(description="hash")
    def shown_hash_short(self, transaction: Transaction) -> SafeString | str:
        return transaction_value(_shown(transaction), chain_id=transaction.chain_id, short=True)

    @admin.display(description="hash")
    def shown_hash_in_full(self, transaction: Transaction) -> SafeString | str:
        return transaction_value(_shown(transaction), chain_id=transaction.chain_id)

    @admin.display(description="value")
    def value_in_eth(self, transaction: Transaction) -> str:
        return format_amount(transaction.value, ETH)

    @admin.display(description="cost limit")
    def cost_limit_in_eth(self, transaction: Transaction) -> str:
        return NOTHING if transaction.cost_limit is None else format_amount(transaction.cost_limit, ETH)

    @admin.display(description="calldata")
    def calldata(self, transaction: Transaction) -> SafeString | str:
        return chain_value(transaction.data)

    @admin.display(description="idempotency key")
    def idempotency_key(self, transaction: Transaction) -> SafeString | str:
        return chain_value(transaction.key)


@admin.register(Attempt)
class AttemptAdmin(AttemptColumns, ReadOnlyAdmin):
    """Signed raw transactions."""

    list_display = ("id", "short_hash", "transaction_page", "standing", "fee_cap", "tip_cap", "created_at", "sent_at")
    list_filter = ("state", "created_at")
    list_select_related = ("transaction",)
    search_fields = ("transaction__key", "error")
    search_help_text = "Transaction hash"
    hash_lookups = ("hash",)
    fieldsets = (
        (None, {"fields": ("transaction_page", "hash_in_full", "kind", "nonce", "standing")}),
        ("Sending", {"fields": ("sends", "outcome", "error", "created_at", "sent_at", "sent_block")}),
        ("Fees", {"fields": ("gas_limit", "fee_cap", "tip_cap")}),
        ("Signed bytes", {"fields": ("signed_bytes",)}),
    )

    @admin.display(description="transaction", ordering="transaction")
    def transaction_page(self, attempt: Attempt) -> SafeString | str:
        return page_link(attempt.transaction, text=attempt.transaction.get_kind_display())

    @admin.display(description="raw")
    def signed_bytes(self, attempt: Attempt) -> SafeString | str:
        return chain_value(attempt.raw)


@admin.register(Receipt)
class ReceiptAdmin(ReadOnlyAdmin):
    """What the chain says became of transactions."""

    list_display = ("id", "hash_short", "transaction_page", "outcome", "block", "fee", "block_time")
    list_filter = ("succeeded", "block_time")
    list_select_related = ("attempt", "transaction")
    search_fields = ("revert_reason",)
    search_help_text = "Transaction or block hash"
    hash_lookups = ("attempt__hash", "block_hash")
    ordering = ("-id",)
    fieldsets = (
        (None, {"fields": ("transaction_page", "hash_in_full", "outcome", "revert_reason", "fee")}),
        ("Block", {"fields": ("block", "block_hash_in_full", "block_time")}),
    )

    @admin.display(description="hash")
    def hash_short(self, receipt: Receipt) -> SafeString | str:
        return transaction_value(receipt.attempt.hash, chain_id=receipt.transaction.chain_id, short=True)

    @admin.display(description="hash")
    def hash_in_full(self, receipt: Receipt) -> SafeString | str:
        return transaction_value(receipt.attempt.hash, chain_id=receipt.transaction.chain_id)

    @admin.display(description="transaction", ordering="transaction")
    def transaction_page(self, receipt: Receipt) -> SafeString | str:
        return page_link(receipt.transaction, text=receipt.transaction.get_kind_display())

    @admin.display(description="outcome", ordering="succeeded")
    def outcome(self, receipt: Receipt) -> SafeString:
        return _outcome(receipt)

    @admin.display(description="block", ordering="block_number")
    def block(self, receipt: Receipt) -> SafeString | str:
        return block_value(receipt.block_number, chain_id=receipt.transaction.chain_id)

    @admin.display(description="block hash")
    def block_hash_in_full(self, receipt: Receipt) -> SafeString | str:
        return chain_value(receipt.block_hash)

    @admin.display(description="fee")
    def fee(self, receipt: Receipt) -> str:
        return fee_text(receipt)


@admin.register(Sender)
class SenderAdmin(ReadOnlyAdmin):
    """Accounts that send, and why one of them pauses."""

    list_display = ("address_short", "chain_id", "standing", "paused_until", "leased_until")
    search_fields = ("paused_reason",)
    search_help_text = "Address"
    address_lookups = ("address",)
    fieldsets = (
        (None, {"fields": ("chain_id", "address_in_full", "standing", "paused_until", "paused_reason")}),
        ("Broadcaster", {"fields": ("holder", "fence", "leased_until")}),
    )

    @admin.display(description="address", ordering="address")
    def address_short(self, sender: Sender) -> SafeString | str:
        return address_value(sender.address, chain_id=sender.chain_id, short=True)

    @admin.display(description="address")
    def address_in_full(self, sender: Sender) -> SafeString | str:
        return address_value(sender.address, chain_id=sender.chain_id)

    @admin.display(description="state", ordering="paused_until")
    def standing(self, sender: Sender) -> SafeString:
        paused = sender.paused_until is not None and sender.paused_until > timezone.now()
        return badge("paused", colour="danger") if paused else badge("sending", colour="success")


def _gwei(amount: int) -> SafeString:
    return format_html('<span class="amount">{}</span>', format_amount(amount, GWEI))


def _outcome(receipt: Receipt) -> SafeString:
    return badge("succeeded", colour="success") if receipt.succeeded else badge("reverted", colour="danger")


def _shown(row: Model) -> str:
    return getattr(row, "shown_hash", None) or ""
