"""Served models in the shape of the OpenAI API, under every name that they answer to."""

from __future__ import annotations

from typing import Any

from jobs.named_models import named_model
from jobs.stored import stored
from nodes.models import ServedModel


async def resolved(name: str) -> ServedModel:
    """The served model that ``name`` means. Raises ``RequestError``."""
    return await stored(named_model)(name)


def model_object(model: ServedModel) -> dict[str, Any]:
    """One entry of the list of models; ``name`` and ``description`` are what clients of the network read."""
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.added_at.timestamp()),
        "owned_by": "fabstir-host",
        "name": model.id,
        "description": f"{model.architecture}, {model.quantization}, context {model.context_length} tokens",
        "aliases": model.aliases,
        "context_length": model.context_length,
        "default": model.is_default,
    }


def fingerprint(model: ServedModel) -> str:
    """``system_fingerprint``: the same while the same files answer."""
    return f"fp_{model.manifest_sha256[:12]}"
