"""What the document says of access: authorisations of depositors, and the use of API keys."""

from __future__ import annotations

from jobs.api_keys import Scope
from jobs.openapi_operations import WITH_BODY, Operation, Part, in_query, json_of, operation, reading, request_body
from jobs.openapi_schemas import (
    COUNT,
    MAYBE_COUNT,
    TEXT,
    UNIX_SECONDS,
    list_of,
    object_of,
    or_null,
    ref,
)
from jobs.openapi_shapes import JOB_ID
from jobs.session_auth_views import ADDRESS, SECONDS_END, SIGNABLE, SIGNATURE, TIMELESS
from jobs.strict_fields import Schema
from jobs.usage_views import ALL_KEYS, OWN_KEY


def part() -> Part:
    """``/v1/session-auth`` and ``/v1/usage``."""
    return Part(
        tags={"Access": "Who may spend a deposit, and what API keys have used."},
        paths={"/v1/session-auth": {"post": _session_auth()}, "/v1/usage": {"get": _usage()}},
        schemas={
            "SessionAuthRequest": _grant(),
            "SessionAuth": _authorization(),
            "UsageList": object_of(object={"const": "list"}, data=list_of(ref("ApiKeyUsage"))),
            "ApiKeyUsage": _api_key_usage(),
        },
    )


def _session_auth() -> Operation:
    described = operation(
        "authorizeSession",
        "Let a client use a job, by the signature of its depositor",
        tag="Access",
        answer=json_of("SessionAuth"),
        refusals=(401, 402, 403, 409, 503, *WITH_BODY),
        limited=True,
    )
    described["responses"]["200"]["headers"]["Cache-Control"] = {"schema": {"const": "no-store"}, "required": True}
    return {**described, "requestBody": request_body("SessionAuthRequest")}


def _usage() -> Operation:
    described = reading(
        "readUsage",
        "What API keys used today",
        tag="Access",
        answer="UsageList",
        refusals=(401, 403, 503),
        public=False,
    )
    described["parameters"] += [
        in_query("all", {"enum": [OWN_KEY, ALL_KEYS], "description": 'Every key, for one with the scope "usage".'})
    ]
    return {**described, "security": [{"key": []}]}


def _grant() -> Schema:
    """What else stands in the body is ignored, as are the times of a scheme that signs none."""
    seconds: Schema = {**UNIX_SECONDS, "exclusiveMaximum": SECONDS_END}
    timed = [scheme.value for scheme in SIGNABLE if scheme is not TIMELESS]
    return {
        "anyOf": [
            _signed(schemes=[TIMELESS.value]),
            _signed(schemes=timed, issuedAt=seconds, expiresAt=seconds),
        ]
    }


def _signed(*, schemes: list[str], **times: Schema) -> Schema:
    properties: dict[str, Schema] = {
        "sessionId": JOB_ID,
        "clientAddress": {"type": "string", "pattern": f"^{ADDRESS}$"},
        "scheme": {"enum": schemes},
        "signature": {"type": "string", "pattern": f"^{SIGNATURE}$"},
        **times,
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _authorization() -> Schema:
    return object_of(
        ok={"const": True},
        session_id={"type": "string", "pattern": "^[1-9][0-9]*$"},
        expires_at=UNIX_SECONDS,
        optional={
            "session_token": {**TEXT, "description": "A secret. Absent where only the client's key opens the job."}
        },
    )


def _api_key_usage() -> Schema:
    return object_of(
        object={"const": "api_key.usage"},
        name=TEXT,
        key={**TEXT, "description": "Its beginning."},
        scopes=list_of({"enum": [scope.value for scope in Scope]}),
        requests_today=COUNT,
        tokens_today=COUNT,
        tokens_reserved=COUNT,
        tokens_per_day=MAYBE_COUNT,
        requests_per_minute=MAYBE_COUNT,
        tokens_per_minute=MAYBE_COUNT,
        expires_at=or_null(UNIX_SECONDS),
    )
