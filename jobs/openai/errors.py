"""Refusals as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``.

Guarantees the same codes and sentences as everywhere else on the node, under the names that OpenAI
clients look for; what else is known of a refusal stands in ``details``, an extension.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from jobs.protocol import RequestError

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "insufficient_quota",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}

# The node's own codes that mean what a code of the OpenAI API means.
_CODES = {
    "TOKEN_LIMIT_EXCEEDED": "context_length_exceeded",
    "validation_error": "invalid_value",
}

ADDRESSES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize")
"""Beginnings of the addresses that answer errors in this shape."""


def speaks_openai(path: str) -> bool:
    """Whether errors at ``path`` have the shape of the OpenAI API."""
    return any(path == address or path.startswith(f"{address}/") for address in ADDRESSES)


def error_object(refusal: RequestError) -> dict[str, Any]:
    """The body of a refusal."""
    details = dict(refusal.details)
    param = details.pop("field", None)
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": _type_of(refusal.status),
        "param": param,
        "code": _CODES.get(refusal.code, refusal.code),
    }
    if details:
        error["details"] = details
    return {"error": error}


def unsupported(parameter: str, *, hint: str) -> RequestError:
    """A 400 that names a parameter which this host cannot honour, and would otherwise have to ignore."""
    return RequestError(
        code="unsupported_parameter",
        message=f"{parameter} is not supported by this host: {hint}.",
        status=HTTPStatus.BAD_REQUEST,
        details={"field": parameter},
    )


def _type_of(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return _TYPES.get(HTTPStatus(status), "invalid_request_error")
