"""Admin pages of the host and of the models it serves.

``ServedModelAdmin`` is registered by the jobs app, which adds what the engine does with a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from nodes.models import Host, ServedModel
from nodes.read_only_admin import NOTHING, BaseAdmin, ReadOnlyAdmin, badge, chain_value
from nodes.tasks import check_model

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[ServedModel]
    UnfoldBooleanSwitchWidget = forms.CheckboxInput
else:
    from unfold.widgets import UnfoldBooleanSwitchWidget

    ModelForm = forms.ModelForm


@admin.register(Host)
class HostAdmin(ReadOnlyAdmin):
    """This node's account, as the node registry showed it last."""

    list_display = ("account", "chain_id", "registration", "api_url", "checked_at")
    list_filter = ("chain_id", "registered")
    search_fields = ("api_url",)
    address_lookups = ("address",)
    fieldsets = (
        (None, {"fields": ("account_in_full", "chain_id", "registration", "checked_at")}),
        ("As registered", {"fields": ("api_url", "public_key_in_full")}),
    )

    @admin.display(description="address", ordering="address")
    def account(self, host: Host) -> SafeString | str:
        return chain_value(host.address, short=True)

    @admin.display(description="address")
    def account_in_full(self, host: Host) -> SafeString | str:
        return chain_value(host.address)

    @admin.display(description="public key")
    def public_key_in_full(self, host: Host) -> SafeString | str:
        return chain_value(host.public_key)

    @admin.display(description="registered", ordering="registered")
    def registration(self, host: Host) -> SafeString:
        if host.registered:
            return badge("registered", colour="success")
        return badge("not registered", colour="warning")


class ServedModelForm(ModelForm):
    """What an operator may change about a model: the names it answers to, and whether it is served."""

    make_default = forms.BooleanField(
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="The model that takes over from the present default, which stays in service.",
    )

    def clean(self) -> dict[str, Any]:
        """There is one default while there is any, and it is served: it cannot be switched off."""
        cleaned = super().clean() or self.cleaned_data
        if not cleaned.get("enabled") and (self.instance.is_default or cleaned.get("make_default")):
            self.add_error("enabled", "The default model is always served. Make another model the default first.")
        return cleaned

    def clean_aliases(self) -> list[str]:
        """Names must be text, and must not name another model (``nodes.catalog`` promises one meaning)."""
        aliases = self.cleaned_data["aliases"] or []
        if not isinstance(aliases, list) or not all(isinstance(name, str) and name.strip() for name in aliases):
            raise forms.ValidationError('Enter a JSON list of names, such as ["default", "small"].')
        for other in ServedModel.objects.exclude(pk=self.instance.pk):
            taken = sorted({other.id, *other.aliases} & set(aliases))
            if taken:
                raise forms.ValidationError(f"{', '.join(taken)} already names the model {other.id}.")
        return list(dict.fromkeys(aliases))


class ServedModelAdmin(BaseAdmin):
    """The models that clients may ask for. Files come and go by command, not here."""

    form = ServedModelForm
    list_display: tuple[str, ...] = (
        "id",
        "names",
        "architecture",
        "quantization",
        "size",
        "standing",
        "is_default",
        "enabled",
    )
    actions: tuple[str, ...] = ("check_again",)
    list_filter = ("enabled", "is_default", "architecture")
    search_fields = ("id", "source")
    list_fullwidth = True
    show_full_result_count = False
    readonly_fields: ClassVar[tuple[str, ...]] = (
        "id",
        "is_default",
        "path",
        "source",
        "revision",
        "size",
        "standing",
        "check_figures",
        "checked_at",
        "architecture",
        "quantization",
        "context_length",
        "vocabulary_size",
        "manifest_hash",
        "added_at",
    )
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("id", "aliases", "enabled", "is_default", "make_default")}),
        ("Model", {"fields": ("architecture", "quantization", "context_length", "vocabulary_size")}),
        ("Check", {"fields": ("standing", "check_figures", "checked_at")}),
        ("Files", {"fields": ("path", "source", "revision", "size", "manifest_hash", "added_at")}),
    )

    @admin.action(description="Check again", permissions=["change"])
    def check_again(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        ids = list(queryset.values_list("pk", flat=True))
        for model_id in ids:
            check_model.apply_async(args=(model_id,), queue="default")
        messages.success(request, f"{len(ids)} models are being checked; reload this page in a minute.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ServedModel, form: ServedModelForm, change: bool) -> None:
        with transaction.atomic():
            if form.cleaned_data["make_default"]:
                ServedModel.objects.exclude(pk=obj.pk).update(is_default=False)
                obj.is_default = True
            super().save_model(request, obj, form, change)

    @admin.display(description="further names")
    def names(self, model: ServedModel) -> str:
        return ", ".join(model.aliases)

    @admin.display(description="manifest sha256")
    def manifest_hash(self, model: ServedModel) -> SafeString | str:
        return chain_value(model.manifest_sha256)

    @admin.display(description="size", ordering="size_bytes")
    def size(self, model: ServedModel) -> str:
        return f"{model.size_bytes / 1e6:.0f} MB" if model.size_bytes else NOTHING

    @admin.display(description="check")
    def standing(self, model: ServedModel) -> SafeString:
        if model.check_error:
            return badge("failed", colour="danger")
        return badge("passed", colour="success") if model.check_method else badge("not checked", colour="warning")

    @admin.display(description="figures")
    def check_figures(self, model: ServedModel) -> str:
        return model.check_summary
