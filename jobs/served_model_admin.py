"""The admin page of a served model with what the engine does with it, and what an operator may ask of the engine.

Guarantees that only who may change served models by the database's permissions can ask, that each request is
audited under the user's name with what became of it, and that the pages open, after two seconds at most, while
the engine is away or hangs. Translates and delegates to ``engine_control``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs import engine_control
from jobs.engine_control import Change, EngineView, Outcome
from jobs.inference.engine import LoadedModel
from nodes.admin import ServedModelAdmin
from nodes.models import ServedModel
from nodes.read_only_admin import NOTHING, badge

_COLOURS = {"loaded": "success", "loading": "info", "unloaded": "neutral", "failed": "danger"}
_NOTHING_SEEN = EngineView()


@admin.register(ServedModel)
class ServedModelInEngineAdmin(ServedModelAdmin):
    """Served models, in the catalog and in the engine."""

    list_display = (
        "id",
        "names",
        "architecture",
        "quantization",
        "size",
        "standing",
        "in_engine",
        "memory",
        "computes_on",
        "is_default",
        "enabled",
    )
    actions: tuple[str, ...] = ("load_now", "unload_now", "pin_now", "unpin_now", *ServedModelAdmin.actions)
    readonly_fields: ClassVar[tuple[str, ...]] = (
        *ServedModelAdmin.readonly_fields,
        "in_engine",
        "memory",
        "computes_on",
        "work",
        "trouble",
    )
    fieldsets: ClassVar[Any] = (
        *ServedModelAdmin.fieldsets[:1],
        (
            "In the engine",
            {
                "fields": ("in_engine", ("memory", "computes_on"), "work", "trouble"),
                "description": "As the engine says now. Load, unload, pin and unpin models with the actions of their"
                " list. A model that is not pinned is loaded by its first request and unloaded when it is idle.",
            },
        ),
        *ServedModelAdmin.fieldsets[1:],
    )

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Who may change served models may steer the engine, where there is one to steer."""
        return engine_control.is_own() and self.has_change_permission(request)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response: HttpResponse = super().changelist_view(request, extra_context)
        found = (response.context_data or {}).get("cl") if isinstance(response, TemplateResponse) else None
        if found is not None:
            _show_engine(request, found.result_list)
        return response

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The engine is asked, and told, outside the transaction in which a form is saved."""
        response: HttpResponse = super().changeform_view(request, *args, **kwargs)
        if isinstance(response, TemplateResponse):
            model = (response.context_data or {}).get("original")
            _show_engine(request, [] if model is None else [model])
        elif request.method == "POST" and isinstance(response, HttpResponseRedirect) and engine_control.is_own():
            told = engine_control.tell()
            messages.add_message(request, messages.INFO if told.reached else messages.WARNING, told.sentence)
        return response

    @admin.action(description="Load into the engine", permissions=["operate"])
    def load_now(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        self._change(request, queryset, "load")

    @admin.action(description="Unload from the engine", permissions=["operate"])
    def unload_now(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        self._change(request, queryset, "unload")

    @admin.action(description="Pin: load and never unload", permissions=["operate"])
    def pin_now(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        self._change(request, queryset, "pin")

    @admin.action(description="Unpin: may be unloaded when idle", permissions=["operate"])
    def unpin_now(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        self._change(request, queryset, "unpin")

    def _change(self, request: HttpRequest, queryset: QuerySet[ServedModel], wanted: Change) -> None:
        models = {model.pk: model for model in queryset}
        for outcome in engine_control.change(wanted, list(models)):
            level, said = _told(outcome, wanted)
            self.log_change(request, models[outcome.model], f"Asked the engine to {wanted} it. {said}")
            messages.add_message(request, level, f"{outcome.model}: {said}")

    @admin.display(description="in the engine")
    def in_engine(self, model: ServedModel) -> SafeString | str:
        view = _view_of(model)
        found = view.models.get(model.pk)
        if view.problem:
            return badge("engine is away", colour="warning")
        if found is None:
            return NOTHING
        state = badge(
            f"loading {found.progress:.0%}" if found.state == "loading" else found.state, colour=_COLOURS[found.state]
        )
        return format_html("{} {}", state, badge("pinned")) if found.pinned else state

    @admin.display(description="memory")
    def memory(self, model: ServedModel) -> str:
        found = _view_of(model).models.get(model.pk)
        return NOTHING if found is None or found.state != "loaded" else _megabytes(found)

    @admin.display(description="computes on")
    def computes_on(self, model: ServedModel) -> str:
        found = _view_of(model).models.get(model.pk)
        return NOTHING if found is None or found.state != "loaded" else _place(found)

    @admin.display(description="work")
    def work(self, model: ServedModel) -> str:
        load = _view_of(model).load.get(model.pk)
        if load is None:
            return NOTHING
        return (
            f"{load.running} requests run in {len(load.batch_rows)} batches, {load.waiting} of {load.queue_size} wait;"
            f" {load.tokens_generated} tokens since the engine started"
        )

    @admin.display(description="trouble")
    def trouble(self, model: ServedModel) -> str:
        view = _view_of(model)
        found = view.models.get(model.pk)
        return view.problem or ("" if found is None else found.problem) or NOTHING


def _show_engine(request: HttpRequest, models: Iterable[ServedModel]) -> None:
    """Ask the engine once for all rows of a page, and say at its top if it does not answer."""
    view = engine_control.look()
    if view.problem:
        messages.warning(request, f"The engine is away: {view.problem}")
    for model in models:
        model.engine_view = view  # type: ignore[attr-defined]  # for this page only


def _view_of(model: ServedModel) -> EngineView:
    view: EngineView = getattr(model, "engine_view", _NOTHING_SEEN)
    return view


def _told(outcome: Outcome, wanted: Change) -> tuple[int, str]:
    """The level and the words of a message."""
    if outcome.problem:
        return messages.ERROR, f"Not done: {outcome.problem}"
    now = outcome.now
    if outcome.unfinished or now is None:
        doing = "It is under way"
        if now is not None and now.state == "loading":
            doing = f"It is being loaded ({now.progress:.0%} is done)"
        then = ", and is pinned then" if wanted == "pin" else ""
        return messages.INFO, f"{doing}{then}. Reload this page to see it."
    if now.state != "loaded":
        return messages.SUCCESS, "It is not in memory." if now.state == "unloaded" else f"It is {now.state}."
    pinned = "pinned" if now.pinned else "not pinned"
    return messages.SUCCESS, f"It is loaded and {pinned}: {_megabytes(now)}, {_place(now)}."


def _place(model: LoadedModel) -> str:
    return f"{model.device}, {model.compute_type}, {model.replicas} x {model.batch_rows} requests"


def _megabytes(model: LoadedModel) -> str:
    return f"{model.memory_bytes / 1e6:.0f} MB"
