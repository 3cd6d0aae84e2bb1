"""The OpenAPI document of the HTTP interface, served at ``/v1/openapi.json``.

Guarantees that every route, body, answer and refusal of inference over HTTP is in it, with the limits and
the models of this very host; what other apps answer, they describe themselves and hand in as a ``Part``.
Does not describe the WebSocket, which OpenAPI has no words for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs import openapi_access
from jobs import openapi_answers as answers
from jobs import openapi_shapes as shapes
from jobs.http_bodies import HEADERS
from jobs.http_callers import TOKEN_HEADER
from jobs.idempotency import HEADER as IDEMPOTENCY_HEADER
from jobs.idempotency import REPLAYED_HEADER
from jobs.openapi_operations import (
    WITH_BODY,
    Operation,
    Part,
    header,
    in_path,
    json_of,
    operation,
    reading,
    request_body,
)
from jobs.openapi_schemas import object_of
from jobs.openapi_shapes import Limits

_OPENAPI = "3.1.0"
API_VERSION = "1.1"
"""Grows with the interface; which build answers is at ``/v1/version``."""

# What may be refused where: to callers, to those who send a body, and to those who generate.
_CALLED = (401, 403, 503)
_COUNTED = (*_CALLED, *WITH_BODY, 404)
_GENERATING = (*_COUNTED, 402, 409)


def document(limits: Limits, *, parts: Sequence[Part] = ()) -> dict[str, Any]:
    """The document of a host with ``limits``, and with ``parts`` besides inference and access to it."""
    whole = (_inference(limits), openapi_access.part(), *parts)
    return {
        "openapi": _OPENAPI,
        "info": {
            "title": "Fabstir Host",
            "version": API_VERSION,
            "description": "Inference over HTTP: the network's own contract and the OpenAI API. Whatever is "
            "generated for a job is counted and paid from its deposit, on every path alike.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": meaning} for part in whole for name, meaning in part.tags.items()],
        "paths": {path: dict(methods) for part in whole for path, methods in part.paths.items()},
        "components": {
            "schemas": {name: schema for part in whole for name, schema in part.schemas.items()},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key of this host, or the token of a session. Hosts that serve jobs or "
                    "unpaid requests need neither.",
                },
                "sessionToken": {
                    "type": "apiKey",
                    "in": "header",
                    "name": TOKEN_HEADER,
                    "description": "The token of a session, where Authorization holds something else.",
                },
            },
        },
        "security": [{}, {"key": []}, {"sessionToken": []}],
    }


def _inference(limits: Limits) -> Part:
    return Part(
        tags={
            "Fabstir": "The contract of the network's nodes.",
            "OpenAI": "What OpenAI clients speak.",
            "Tokens": "How this host counts.",
        },
        paths=_paths(limits),
        schemas={
            "InferenceRequest": shapes.inference_body(limits),
            "ChatCompletionRequest": shapes.chat_body(limits),
            "CompletionRequest": shapes.completions_body(limits),
            "TokenizeRequest": shapes.tokenize_body(limits),
            "DetokenizeRequest": shapes.detokenize_body(limits),
            **answers.schemas(),
            "Document": object_of(
                **{name: {} for name in ("openapi", "info", "servers", "tags", "paths", "components", "security")}
            ),
        },
    )


def _paths(limits: Limits) -> dict[str, dict[str, Operation]]:
    chat = _generating("createChatCompletion", "Answer a conversation", tag="OpenAI", about="ChatCompletion")
    text = _generating("createCompletion", "Complete a text as it is", tag="OpenAI", about="Completion")
    model = _openai("retrieveModel", "One model", answer="Model", refusals=(*_CALLED, 404))
    model["parameters"] += [in_path("model", {"enum": list(limits.models)} if limits.models else shapes.SOME_TEXT)]
    return {
        "/v1/inference": {"post": _generating("infer", "Answer a prompt", tag="Fabstir", about="Inference")},
        "/v1/chat/completions": {"post": chat},
        "/v1/completions": {"post": text},
        "/v1/models": {"get": _openai("listModels", "Models served here", answer="ModelList", refusals=_CALLED)},
        "/v1/models/{model}": {"get": model},
        "/v1/openapi.json": {
            "get": reading("describe", "This document", tag="Fabstir", answer="Document", refusals=(503,))
        },
        "/tokenize": {"post": _counting("tokenize", "Token ids of a prompt", body="Tokenize", answer="Tokens")},
        "/detokenize": {"post": _counting("detokenize", "Text of token ids", body="Detokenize", answer="Text")},
    }


def _generating(operation_id: str, summary: str, *, tag: str, about: str) -> Operation:
    """``about`` names the request, the answer and its pieces."""
    described = operation(
        operation_id,
        summary,
        tag=tag,
        answer={**json_of(about), "text/event-stream": answers.event(f"{about}Chunk")},
        refusals=_GENERATING,
        envelope="Error" if tag == "Fabstir" else "OpenAIError",
        limited=True,
    )
    success = described["responses"]["200"]
    success["description"] = "The answer; server-sent events for stream: true."
    success["headers"][REPLAYED_HEADER] = {
        "schema": {"const": "true"},
        "description": "Only where an idempotency key brought an earlier answer back.",
    }
    described["requestBody"] = request_body(f"{about}Request")
    described["parameters"] += [
        header(HEADERS["job_id"], shapes.JOB_ID["anyOf"][1]),
        header(HEADERS["session_id"], shapes.SESSION_ID),
        header(IDEMPOTENCY_HEADER, {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"}),
    ]
    return described


def _counting(operation_id: str, summary: str, *, body: str, answer: str) -> Operation:
    described = operation(
        operation_id,
        summary,
        tag="Tokens",
        answer=json_of(answer),
        refusals=_COUNTED,
        envelope="OpenAIError",
        limited=True,
    )
    return {**described, "requestBody": request_body(f"{body}Request")}


def _openai(operation_id: str, summary: str, *, answer: str, refusals: tuple[int, ...]) -> Operation:
    return operation(
        operation_id, summary, tag="OpenAI", answer=json_of(answer), refusals=refusals, envelope="OpenAIError"
    )
