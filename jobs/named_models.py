"""The model that a request names."""

from __future__ import annotations

from jobs.protocol import RequestError
from nodes import catalog
from nodes.models import ServedModel


def named_model(name: str) -> ServedModel:
    """The served model that ``name`` (an id or an alias) means. Raises ``RequestError`` (404)."""
    try:
        return catalog.resolve(name)
    except catalog.UnknownModel as unknown:
        raise RequestError(
            code="model_not_found",
            message=str(unknown),
            status=404,
            details={"field": "model", "available_models": list(unknown.available)},
        ) from unknown
