"""The page of a session with all that became of its tokens: checkpoints, transactions, money."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from jobs.admin import SessionAdmin
from jobs.models import Session
from nodes.read_only_admin import NOTHING, ReadOnlyInline, page_link
from settlement.admin.checkpoint import CheckpointInline
from settlement.admin.earning import EarningInline
from settlement.admin.links import address_value, transaction_value
from settlement.admin.money import amount_cell, with_unit
from settlement.admin.states import transaction_badge
from settlement.admin.transaction import with_shown_hash
from settlement.explorer import chain_id_of
from settlement.models import Transaction
from settlement.transaction_keys import claims_of_job, completions_of_job


@admin.register(Session)
class SettledSessionAdmin(SessionAdmin):
    """Sessions and jobs, with their checkpoints, transactions and earnings."""

    inlines: ClassVar[tuple[type[ReadOnlyInline], ...]] = (CheckpointInline, EarningInline, *SessionAdmin.inlines)
    list_display: tuple[str, ...] = (
        "name",
        "standing",
        "payer",
        "formatted_deposit",
        "tokens",
        "budget",
        "checkpoint_count",
        "last_activity_at",
    )
    fieldsets = (
        (None, {"fields": ("name", "standing", "close_reason", "client_session_id", "deployment")}),
        (
            "Payment",
            {
                "fields": (
                    "depositor_in_full",
                    "host_in_full",
                    "token_in_full",
                    ("formatted_deposit", "formatted_price"),
                    ("token_budget", "budget"),
                )
            },
        ),
        (
            "Who may spend the deposit",
            {
                "fields": (("bound_by", "bound_to"),),
                "description": "The first caller who was let prompt on this job: how it was recognised, and as whom."
                " The depositor and whom it authorises may always prompt; of all others only this caller. Empty while"
                " nobody had to show who it is, and for a session without a job. An API key, an authorisation or a"
                " session token is named by the number of its row, never by its secret.",
            },
        ),
        (
            "Tokens",
            {
                "fields": (
                    ("tokens_tracked", "tokens_sealed", "tokens_claimed"),
                    ("tokens_inherited", "checkpoint_count"),
                )
            },
        ),
        (
            "Times",
            {
                "fields": (
                    ("created_at", "last_activity_at", "closed_at"),
                    ("job_started_at", "job_expires_at", "last_claim_at"),
                    ("idle_timeout_seconds", "had_socket"),
                )
            },
        ),
        ("Transactions", {"fields": ("transactions",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_unit(super().get_queryset(request), deployment="deployment", paid_in="payment_token")

    @admin.display(description="deposit", ordering="deposit")
    def formatted_deposit(self, session: Session) -> SafeString | str:
        return amount_cell(session, _of_job(session, session.deposit), token=session.payment_token)

    @admin.display(description="price per token", ordering="price_per_token")
    def formatted_price(self, session: Session) -> SafeString | str:
        return amount_cell(session, _of_job(session, session.price_per_token), token=session.payment_token)

    @admin.display(description="depositor", ordering="depositor")
    def payer(self, session: Session) -> SafeString | str:
        return address_value(session.depositor, chain_id=chain_id_of(session.deployment), short=True)

    @admin.display(description="depositor")
    def depositor_in_full(self, session: Session) -> SafeString | str:
        return address_value(session.depositor, chain_id=chain_id_of(session.deployment))

    @admin.display(description="host")
    def host_in_full(self, session: Session) -> SafeString | str:
        return address_value(session.host, chain_id=chain_id_of(session.deployment))

    @admin.display(description="payment token")
    def token_in_full(self, session: Session) -> SafeString | str:
        return address_value(session.payment_token, chain_id=chain_id_of(session.deployment))

    @admin.display(description="transactions")
    def transactions(self, session: Session) -> SafeString | str:
        rows = [
            (
                page_link(transaction, text=transaction.get_kind_display()),
                transaction_badge(transaction.state),
                NOTHING if transaction.nonce is None else str(transaction.nonce),
                transaction_value(transaction.shown_hash or "", chain_id=transaction.chain_id),
            )
            for transaction in transactions_of(session)
        ]
        if not rows:
            return NOTHING
        return format_html(
            '<table class="plain-table"><tr><th>call</th><th>state</th><th>nonce</th><th>hash</th></tr>{}</table>',
            format_html_join("", "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>", rows),
        )


def transactions_of(session: Session) -> QuerySet[Any]:
    """Every transaction made for a job: its claims, claims given up and tried anew, and its completion.

    Only a claim that a checkpoint still stands by is linked to it; the others are known by their keys.
    """
    if session.job_id is None:
        return Transaction.objects.none()
    return with_shown_hash(
        Transaction.objects.filter(
            Q(checkpoint__session=session)
            | Q(key__startswith=claims_of_job(session.deployment, session.job_id))
            | Q(key__startswith=completions_of_job(session.deployment, session.job_id))
        )
    ).order_by("id")


def _of_job(session: Session, amount: int) -> int | None:
    return None if session.job_id is None else amount
