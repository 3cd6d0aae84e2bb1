"""How one operation of the HTTP interface is written down, for every app that has some.

Guarantees that every operation takes and returns a request id, and that each status that refuses has the
envelope of its address, its meaning and the headers that come with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, get_args

from jobs.openapi_schemas import COUNT, TEXT, ref
from jobs.rate_limits import Kind
from jobs.request_ids import HEADER as REQUEST_ID_HEADER
from jobs.strict_fields import Schema

Operation = dict[str, Any]

MEANINGS = {
    400: "The request is malformed, asks for something unsupported or does not fit the model; the error says what.",
    401: "The API key, session token or signature is unknown, expired, missing or another's.",
    402: "The deposit is used up, or the host serves paid jobs only.",
    403: "The job belongs to another host or depositor, or the key may not be used for this.",
    404: "There is no such thing here.",
    409: "The job has ended, or the idempotency key was used before.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests or tokens.",
    500: "The host failed.",
    503: "Busy, starting, without a key, or cut off from its chain or database; try again.",
}

# A request may be malformed, and a host may fail, everywhere.
_EVERYWHERE = (400, 500)
WITH_BODY = (413, 415)
"""What any body may be refused with, besides."""

_WAITING = (409, 429, 503)
_RETRY_AFTER = {"schema": COUNT, "description": "Seconds; absent where waiting is idle."}
_NO_RETRY = {"schema": {"const": "false"}, "description": "Sent without Retry-After: it will stay so."}
_CHALLENGE = {"schema": {"const": "Bearer"}, "description": "Absent where an API key would not help."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one app adds to the document: methods by path, schemas by name, and what its tags mean."""

    paths: Mapping[str, Mapping[str, Operation]]
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def operation(
    operation_id: str,
    summary: str,
    *,
    tag: str,
    answer: Mapping[str, Schema],
    refusals: Iterable[int] = (),
    envelope: str = "Error",
    limited: bool = False,
) -> Operation:
    """One method of one address; ``answer`` by content type. ``limited``: it counts for the rate limits."""
    statuses = {*_EVERYWHERE, *refusals, *((429,) if limited else ())}
    return {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "parameters": [header(REQUEST_ID_HEADER)],
        "responses": {
            "200": {
                "description": "The answer.",
                "headers": {**_request_id(), **(_rate_limits() if limited else {})},
                "content": content_of(answer),
            },
            **{str(status): refusal(status, envelope=envelope, limited=limited) for status in sorted(statuses)},
        },
    }


def reading(
    operation_id: str, summary: str, *, tag: str, answer: str, refusals: Iterable[int] = (), public: bool = True
) -> Operation:
    """A ``GET`` of the JSON that is called ``answer``. ``public``: it looks at no key."""
    described = operation(operation_id, summary, tag=tag, answer=json_of(answer), refusals=refusals)
    return {**described, "security": []} if public else described


def refusal(status: int, *, envelope: str, limited: bool = False) -> dict[str, Any]:
    """The answer of a status that refuses, in the ``envelope`` of that name."""
    headers: dict[str, Any] = _request_id()
    if status in _WAITING:
        headers["Retry-After"] = _RETRY_AFTER
    if status == HTTPStatus.CONFLICT:
        headers["X-Should-Retry"] = _NO_RETRY
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _CHALLENGE
    if limited and status == HTTPStatus.TOO_MANY_REQUESTS:
        headers |= _rate_limits()
    return {"description": MEANINGS[status], "headers": headers, "content": content_of(json_of(envelope))}


def json_of(name: str) -> dict[str, Schema]:
    """The schema of that name, as JSON."""
    return {"application/json": ref(name)}


def content_of(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}


def request_body(name: str) -> dict[str, Any]:
    return {"required": True, "content": content_of(json_of(name))}


def header(name: str, schema: Schema | None = None) -> dict[str, Any]:
    """A header that a request may have."""
    return {"name": name, "in": "header", "required": False, "schema": schema or TEXT}


def in_path(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def in_query(name: str, schema: Schema) -> dict[str, Any]:
    """A parameter that an address may have."""
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _request_id() -> dict[str, Any]:
    return {REQUEST_ID_HEADER: {"schema": TEXT, "required": True}}


def _rate_limits() -> dict[str, Any]:
    """Absent where nothing is limited."""
    seconds: Schema = {"type": "string", "pattern": r"^[0-9]+\.[0-9]{3}s$"}
    parts = {"limit": COUNT, "remaining": COUNT, "reset": seconds}
    return {
        f"x-ratelimit-{part}-{kind}": {"schema": schema} for kind in get_args(Kind) for part, schema in parts.items()
    }
