"""The catalog: which models this host serves, and under which names.

Guarantees that a name means one model, that exactly one model is the default while there is any,
and that an unknown name is never silently replaced. The files themselves are the model store's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from nodes.model_manifest import ConversionCheck, ModelManifest
from nodes.models import ServedModel


class UnknownModel(Exception):
    """No served model goes by this name. ``available`` lists the names that work."""

    def __init__(self, name: str, *, available: Sequence[str]) -> None:
        super().__init__(f"No model named {name!r} is served here. Available: {', '.join(available) or 'none'}.")
        self.name = name
        self.available = tuple(available)


class NameTaken(Exception):
    """Another served model already answers to the name."""


def check_names(model_id: str, *, aliases: Sequence[str]) -> None:
    """Raise ``NameTaken`` if another served model answers to one of the names."""
    for other in ServedModel.objects.exclude(pk=model_id):
        for name in (model_id, *aliases):
            if name in (other.id, *other.aliases):
                raise NameTaken(f"{name!r} already names the model {other.id}. Choose another id or alias.")


def register_model(
    manifest: ModelManifest, *, path: Path, aliases: Sequence[str] = (), make_default: bool = False
) -> ServedModel:
    """Add or renew a served model. The first one becomes the default. Raises ``NameTaken``."""
    with transaction.atomic():
        check_names(manifest.id, aliases=aliases)
        others = ServedModel.objects.exclude(pk=manifest.id)
        is_default = make_default or not others.filter(is_default=True).exists()
        if is_default:
            others.update(is_default=False)
        row, _ = ServedModel.objects.update_or_create(
            id=manifest.id,
            defaults={
                "aliases": list(aliases),
                "path": str(path),
                "source": manifest.source,
                "architecture": manifest.architecture,
                "quantization": manifest.quantization,
                "context_length": manifest.context_length,
                "vocabulary_size": manifest.vocabulary_size,
                "manifest_sha256": manifest.fingerprint,
                "revision": manifest.revision,
                "size_bytes": manifest.size,
                **_check_fields(manifest.check),
                "is_default": is_default,
                "enabled": True,
            },
        )
    return row


def record_check(model_id: str, *, check: ConversionCheck | None, error: str = "") -> None:
    """Write down how a served model compared with its reference: the figures, or why it failed."""
    fields = _check_fields(check)
    if check is None:
        fields |= {"check_error": error[:500], "checked_at": timezone.now()}
    ServedModel.objects.filter(pk=model_id).update(**fields)


def describe_check(check: ConversionCheck | None) -> str:
    """The figures of a check in one line."""
    return ServedModel(**_check_fields(check)).check_summary


def _check_fields(check: ConversionCheck | None) -> dict[str, Any]:
    return {
        "check_method": "" if check is None else check.method,
        "check_tokens": 0 if check is None else check.tokens,
        "check_agreement": None if check is None else check.agreement,
        "check_perplexity_ratio": None if check is None else check.perplexity_ratio,
        "check_error": "",
        "checked_at": None if check is None else timezone.now(),
    }


def unregister_model(model_id: str) -> None:
    """Stop serving a model. The next one by name becomes the default if it was. Raises ``UnknownModel``."""
    with transaction.atomic():
        row = ServedModel.objects.filter(pk=model_id).first()
        if row is None:
            raise UnknownModel(model_id, available=[model.id for model in ServedModel.objects.all()])
        row.delete()
        if row.is_default:
            heir = ServedModel.objects.enabled().first()
            if heir:
                ServedModel.objects.filter(pk=heir.pk).update(is_default=True)


def listed_models() -> list[ServedModel]:
    """Every model of the catalog, enabled or not, by id."""
    return list(ServedModel.objects.all())


def served_models() -> list[ServedModel]:
    """The models that clients may ask for."""
    return list(ServedModel.objects.enabled())


def resolve(name: str) -> ServedModel:
    """The served model that ``name`` (an id or an alias) means. Raises ``UnknownModel``."""
    models = served_models()
    for model in models:
        if name == model.id or name in model.aliases:
            return model
    raise UnknownModel(name, available=[known for model in models for known in (model.id, *model.aliases)])
