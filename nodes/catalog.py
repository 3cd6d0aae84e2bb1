"""The catalog: which models this host serves, and under which names.

Guarantees that a name means one model, that exactly one model is the default while there is any,
and that an unknown name is never silently replaced. The files themselves are the model store's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from django.db import transaction

from nodes.model_manifest import ModelManifest
from nodes.models import ServedModel


class UnknownModel(Exception):
    """No served model goes by this name. ``available`` lists the names that work."""

    def __init__(self, name: str, *, available: Sequence[str]) -> None:
        super().__init__(f"No model named {name!r} is served here. Available: {', '.join(available) or 'none'}.")
        self.name = name
        self.available = tuple(available)


class NameTaken(Exception):
    """Another served model already answers to the name."""


def register_model(
    manifest: ModelManifest, *, path: Path, aliases: Sequence[str] = (), make_default: bool = False
) -> ServedModel:
    """Add or renew a served model. The first one becomes the default. Raises ``NameTaken``."""
    fingerprint = hashlib.sha256(json.dumps(asdict(manifest), sort_keys=True, default=str).encode()).hexdigest()
    with transaction.atomic():
        others = ServedModel.objects.exclude(pk=manifest.id)
        for name in (manifest.id, *aliases):
            for other in others:
                if name in (other.id, *other.aliases):
                    raise NameTaken(f"{name!r} already names the model {other.id}. Choose another id or alias.")
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
                "manifest_sha256": fingerprint,
                "is_default": is_default,
                "enabled": True,
            },
        )
    return row


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
