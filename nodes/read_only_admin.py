"""Admin pages of rows that nobody edits by hand, and how chain values are shown on them.

Guarantees that such a page cannot add, change or delete anything, whoever is logged in, and that a
search for a job id, an address or a hash is an exact one. Knows no model.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin, TabularInline

    BaseAdmin = ModelAdmin[Any]
    BaseInline = TabularInline[Any, Any]
else:
    # Unfold is untyped; its classes extend Django's.
    from unfold.admin import ModelAdmin as BaseAdmin
    from unfold.admin import TabularInline as BaseInline

NOTHING = "-"
_JOB_ID = re.compile(r"([0-9]{1,77})n?")
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_HASH = re.compile(r"0x[0-9a-f]{64}")

# Unfold's own label colours, by what a state means to an operator.
_BADGE_COLOURS = {
    "neutral": "bg-base-500/8 text-base-700 dark:bg-base-500/20 dark:text-base-200",
    "info": "bg-blue-100 text-blue-700 dark:bg-blue-500/20 dark:text-blue-400",
    "success": "bg-green-100 text-green-700 dark:bg-green-500/20 dark:text-green-400",
    "warning": "bg-orange-100 text-orange-700 dark:bg-orange-500/20 dark:text-orange-400",
    "danger": "bg-red-100 text-red-700 dark:bg-red-500/20 dark:text-red-400",
}


class _NothingByHand:
    """Refuses every change, also to superusers."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(_NothingByHand, BaseAdmin):
    """List and detail pages of rows that only the node writes.

    ``job_id_lookup``, ``address_lookups`` and ``hash_lookups`` name the exact lookups that a search
    term of that shape uses; any other term goes to ``search_fields``.
    """

    list_per_page = 50
    list_fullwidth = True
    show_full_result_count = False
    job_id_lookup = ""
    address_lookups: tuple[str, ...] = ()
    hash_lookups: tuple[str, ...] = ()

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip().lower()
        job_id = _JOB_ID.fullmatch(term)
        if job_id and self.job_id_lookup:
            return queryset.filter(**{self.job_id_lookup: int(job_id[1])}), False
        for shape, lookups in ((_ADDRESS, self.address_lookups), (_HASH, self.hash_lookups)):
            if lookups and shape.fullmatch(term):
                return queryset.filter(pk__in=_found(queryset, lookups, term)), False
        return super().get_search_results(request, queryset, search_term)


def _found(queryset: QuerySet[Any], lookups: tuple[str, ...], term: str) -> QuerySet[Any]:
    """The keys of the rows that any of the lookups finds: each by its own index, which an OR over tables has not."""
    rows = queryset.model._default_manager.order_by()
    found: list[QuerySet[Any]] = [rows.filter(**{lookup: term}).values("pk") for lookup in lookups]
    return found[0].union(*found[1:]) if len(found) > 1 else found[0]


class ReadOnlyInline(_NothingByHand, BaseInline):
    """Rows below another row's page."""

    extra = 0
    can_delete = False
    hide_title = True
    per_page = 25


def badge(text: str, *, colour: str = "neutral") -> SafeString:
    """A state as a coloured label; ``colour`` is one of neutral, info, success, warning, danger."""
    return format_html(
        '<span class="inline-block font-semibold rounded-default text-[11px] uppercase whitespace-nowrap h-6 '
        'leading-6 px-2 {}">{}</span>',
        _BADGE_COLOURS[colour],
        text.replace("_", " "),
    )


def moment(at: datetime) -> SafeString:
    """A time to the millisecond: the steps of a claim lie closer together than a minute."""
    text = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"
    return format_html('<span class="amount">{}</span>', text)


def page_link(row: Model | None, *, text: str = "") -> SafeString | str:
    """A link to a row's admin page."""
    if row is None:
        return NOTHING
    meta = row._meta
    address = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', address, text or str(row))


def chain_value(value: str, *, href: str | None = None, short: bool = False) -> SafeString | str:
    """A hash or an address with a button that copies all of it; ``short`` abbreviates what is shown."""
    if not value:
        return NOTHING
    shown = f"{value[:8]}…{value[-6:]}" if short and len(value) > 20 else value
    style = "chain-value short" if short else "chain-value"
    if href is None:
        text = format_html('<span class="{}" title="{}">{}</span>', style, value, shown)
    else:
        text = format_html(
            '<a class="{} text-primary-600 dark:text-primary-500" href="{}" title="{}" target="_blank" '
            'rel="noopener noreferrer">{}</a>',
            style,
            href,
            value,
            shown,
        )
    return format_html(
        '<span class="whitespace-nowrap">{}</span>' if short else "<span>{}</span>",
        format_html(
            '{} <button type="button" class="copy-button" title="Copy" aria-label="Copy {}" data-copy="{}" '
            'x-on:click.prevent="navigator.clipboard?.writeText($el.dataset.copy)">'
            '<span class="material-symbols-outlined">content_copy</span></button>',
            text,
            value,
            value,
        ),
    )
