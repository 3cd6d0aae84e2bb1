"""JSON schemas of what the HTTP interface takes, made from the very serializers that check it.

Guarantees that the document and the code cannot disagree on a limit: fields say what they accept
(``strict_fields``), the tables of neutral values are those that refuse the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rest_framework import serializers

from jobs.openai.chat import MOST_MESSAGES, NEUTRAL_IN_MESSAGES, ROLES
from jobs.openai.parameters import (
    MOST_CHOICES,
    NEUTRAL_IN_CHAT,
    NEUTRAL_IN_COMPLETIONS,
    SESSION_FIELDS,
    ChatSerializer,
    CompletionsSerializer,
)
from jobs.openai.tokens import NEUTRAL_IN_TOKENIZE, DetokenizeSerializer, TokenizeSerializer
from jobs.openapi_schemas import NULL, list_of, or_null
from jobs.serializers import NEUTRAL_IN_INFERENCE, THINKING, InferenceSerializer
from jobs.strict_fields import MAX_INTEGER, Schema
from nodes.fields import MAX_UINT256

_ANY_TEXT: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
SOME_TEXT: Schema = {**_ANY_TEXT, "pattern": "^[^\\u0000]+$"}

JOB_ID: Schema = {
    "description": 'The job that pays: 163, "163" and "163n" are one job.',
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MAX_UINT256},
        {"type": "string", "format": "fabstir-job-id", "examples": ["163", "163n"]},
    ],
}
SESSION_ID: Schema = {
    "description": "A session by the client's own name for it; one that is a number names the job of that number.",
    "type": "string",
    "format": "fabstir-session-id",
    "maxLength": 200,
}


_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What depends on the host that the document describes. ``models`` are the names that it answers to."""

    most_tokens: int
    models: tuple[str, ...]
    vocabulary_size: int | None


def chat_body(limits: Limits) -> Schema:
    """The body of ``POST /v1/chat/completions``."""
    schema = body_schema(ChatSerializer, neutral=NEUTRAL_IN_CHAT, limits=limits)
    schema["properties"]["messages"] = conversation()
    schema["required"].append("messages")
    one_limit = {"properties": {name: {"type": "integer"} for name in _LIMITS}, "required": list(_LIMITS)}
    schema["allOf"] = [
        {"not": one_limit},
        _only_with("top_logprobs", "logprobs"),
        _only_with("stream_options", "stream"),
    ]
    return schema


def completions_body(limits: Limits) -> Schema:
    """The body of ``POST /v1/completions``."""
    schema = body_schema(CompletionsSerializer, neutral=NEUTRAL_IN_COMPLETIONS, limits=limits)
    ids: Schema = {"type": "array", "items": token_id(limits), "minItems": 1}
    several = [{"type": "array", "items": each, "minItems": 1, "maxItems": MOST_CHOICES} for each in (SOME_TEXT, ids)]
    schema["properties"]["prompt"] = {"anyOf": [SOME_TEXT, ids, *several]}
    schema["required"].append("prompt")
    one = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
    schema["allOf"] = [
        _only_with("stream_options", "stream"),
        {"anyOf": [{"properties": {"n": {"enum": [1, None]}}}, {"properties": {"prompt": one}}]},
    ]
    return schema


def inference_body(limits: Limits) -> Schema:
    """The body of ``POST /v1/inference``, with what clients of the network send besides."""
    schema = body_schema(InferenceSerializer, neutral=NEUTRAL_IN_INFERENCE, limits=limits, null_is_absent=False)
    for name in ("request_id", "conversation_context"):
        schema["properties"][name] = or_null(schema["properties"][name])
    turn = {
        "type": "object",
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _ANY_TEXT},
        "required": ["role", "content"],
    }
    schema["properties"] |= {
        "conversation_context": or_null(list_of(turn)),
        "thinking": {"enum": [*THINKING, None]},
        **{
            name: {"description": "Accepted since clients of the network send it; has no effect here."}
            for name in ("chain_id", "chainId", "web_search", "max_searches", "search_queries")
        },
    }
    return schema


def tokenize_body(limits: Limits) -> Schema:
    """The body of ``POST /tokenize``."""
    schema = body_schema(TokenizeSerializer, neutral=NEUTRAL_IN_TOKENIZE, limits=limits, sessions=False)
    schema["properties"]["messages"] = or_null(conversation())
    schema["oneOf"] = [
        {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
        {"properties": {"messages": {"type": "array"}}, "required": ["messages"]},
    ]
    return schema


def detokenize_body(limits: Limits) -> Schema:
    """The body of ``POST /detokenize``."""
    schema = body_schema(DetokenizeSerializer, neutral={}, limits=limits, sessions=False)
    schema["properties"]["tokens"] = list_of(token_id(limits))
    return schema


def token_id(limits: Limits) -> Schema:
    """A token id that some served model has."""
    most = MAX_INTEGER if limits.vocabulary_size is None else limits.vocabulary_size - 1
    return {"type": "integer", "minimum": 0, "maximum": most}


def conversation() -> Schema:
    """``messages``."""
    part = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": _ANY_TEXT},
        "required": ["type", "text"],
        "additionalProperties": False,
    }
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [_ANY_TEXT, {"type": "array", "items": part, "minItems": 1}]},
            **{name: {"enum": [None, *harmless]} for name, harmless in NEUTRAL_IN_MESSAGES.items()},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": message, "minItems": 1, "maxItems": MOST_MESSAGES}


def body_schema(
    serializer_class: type[serializers.Serializer[Any]],
    *,
    neutral: Mapping[str, tuple[Any, ...]],
    limits: Limits,
    null_is_absent: bool = True,
    sessions: bool = True,
) -> Schema:
    """The object that ``serializer_class`` takes, and no other field but neutral ones."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for name, field in serializer_class().fields.items():
        schema = _field_schema(field)
        if name in _LIMITS:
            schema["maximum"] = limits.most_tokens
        if name == "model":
            schema = {"enum": list(limits.models)} if limits.models else schema
        if field.required:
            required.append(name)
        elif null_is_absent:
            schema = or_null(schema)
        properties[name] = schema
    for name, harmless in neutral.items():
        properties[name] = {"enum": [None, *harmless], "description": "Not supported: only what asks for nothing."}
    if sessions:
        for name in SESSION_FIELDS:
            properties[name] = or_null(JOB_ID if name.startswith("job") else SESSION_ID)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _field_schema(field: serializers.Field[Any, Any, Any, Any]) -> Schema:
    if hasattr(field, "json_schema"):
        schema: Schema = field.json_schema()
        return schema
    if isinstance(field, serializers.ListField):
        return list_of(_field_schema(field.child))
    if isinstance(field, serializers.ChoiceField):
        return {"enum": list(field.choices)}
    if isinstance(field, serializers.Serializer):
        properties = {
            name: or_null(_field_schema(inner)) if inner.allow_null else _field_schema(inner)
            for name, inner in field.fields.items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}
    raise TypeError(f"{type(field).__name__} does not say what it accepts")


def _only_with(name: str, switch: str) -> Schema:
    """``name`` needs ``switch`` to be true."""
    return {
        "anyOf": [
            {"properties": {name: NULL}},
            {"properties": {switch: {"const": True}}, "required": [switch]},
        ]
    }
