"""Models that run on an inference server elsewhere, as rows of the catalog.

Guarantees that while such a server is used, clients can ask for its models alone, and that none of them
stays behind when it no longer is. Asks no server: it is told what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction

from nodes.models import ServedModel

_REMOTE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """``id`` is what this host calls it. ``context_length`` in token ids."""

    id: str
    context_length: int
    vocabulary_size: int
    description: str


def serve_remote_models(models: Sequence[RemoteModel], *, aliases: Sequence[str]) -> None:
    """Make ``models`` those that are served; the first is the default and answers to ``aliases``."""
    ids = {model.id for model in models}
    with transaction.atomic():
        ServedModel.objects.filter(architecture=_REMOTE).exclude(pk__in=ids).delete()
        ServedModel.objects.update(is_default=False)
        ServedModel.objects.exclude(architecture=_REMOTE).update(enabled=False)
        for number, model in enumerate(models):
            ServedModel.objects.update_or_create(
                id=model.id,
                defaults={
                    "aliases": [alias for alias in aliases if alias not in ids] if number == 0 else [],
                    "path": "",
                    "source": "inference server",
                    "architecture": _REMOTE,
                    "quantization": model.description[:60],
                    "context_length": model.context_length,
                    "vocabulary_size": model.vocabulary_size,
                    "manifest_sha256": hashlib.sha256(model.id.encode()).hexdigest(),
                    "is_default": number == 0,
                    "enabled": True,
                },
            )


def retire_remote_models() -> int:
    """Forget them. Returns how many there were. Local models come back when they are enabled again."""
    with transaction.atomic():
        forgotten, _ = ServedModel.objects.filter(architecture=_REMOTE).delete()
    return forgotten
