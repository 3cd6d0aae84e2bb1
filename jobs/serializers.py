"""Validation of what clients send, the same for HTTP and WebSocket.

Guarantees that every value that reaches a completion has its type and range; anything else is a
``RequestError`` that names the field. Accepts the spellings that existing clients use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from jobs.completions import CompletionRequest
from jobs.inference.engine import ChatMessage
from jobs.models import DeliveryPath
from jobs.protocol import SessionReference, invalid

_MAX_DEPTH = 100
# An unfinished string runs to the end, so that no part of the text is looked at twice.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class _StrictIntegerField(serializers.IntegerField):
    """An integer that is one: neither true, nor 5.5, nor "5"."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            raise serializers.ValidationError("must be an integer.")
        return super().to_internal_value(data)


class _StrictNumberField(serializers.FloatField):
    """A finite number, not a string and not a boolean."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise serializers.ValidationError("must be a number.")
        return super().to_internal_value(data)


class _StrictTextField(serializers.CharField):
    """A string as it came: not trimmed, not made from a number."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("must be a string.")
        if not data.strip() and not self.allow_blank:
            raise serializers.ValidationError("must not be empty.")
        # A lone surrogate cannot be encoded, neither for the tokenizer nor in an answer.
        try:
            data.encode()
        except UnicodeEncodeError as error:
            raise serializers.ValidationError("must be valid Unicode text.") from error
        return data


class _StrictBooleanField(serializers.BooleanField):
    """true or false, nothing that resembles them."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("must be true or false.")
        return data


class TurnSerializer(serializers.Serializer[Any]):
    """One earlier turn of a conversation; ``timestamp`` and other extras are ignored."""

    role = serializers.ChoiceField(choices=["system", "user", "assistant"])
    content = _StrictTextField(allow_blank=True)


class InferenceSerializer(serializers.Serializer[Any]):
    """The body of ``POST /v1/inference`` and the ``request`` of the WebSocket's messages."""

    model = _StrictTextField(max_length=200)
    prompt = _StrictTextField()
    max_tokens = _StrictIntegerField(min_value=1)
    temperature = _StrictNumberField(min_value=0.0, max_value=2.0, default=0.7)
    top_p = _StrictNumberField(min_value=0.0001, max_value=1.0, default=1.0)
    top_k = _StrictIntegerField(min_value=0, max_value=1000, default=0)
    repetition_penalty = _StrictNumberField(min_value=0.1, max_value=10.0, default=1.0)
    stream = _StrictBooleanField(default=False)
    request_id = _StrictTextField(max_length=200, required=False, allow_null=True)
    conversation_context = TurnSerializer(many=True, required=False, allow_null=True)


def parse_json_object(raw: bytes | str) -> dict[str, Any]:
    """The JSON object in ``raw``. Raises ``RequestError``."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
        if _is_deep(text):
            raise invalid(f"The JSON is nested more than {_MAX_DEPTH} levels deep.")
        value = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid("The body is not valid UTF-8.") from error
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    return value


def _is_deep(text: str) -> bool:
    """Whether ``text`` nests further than any client needs.

    The parser recurses in C, and a library of the chain client raises Python's recursion limit to
    where that overflows the stack: without this check one request would end the process.
    """
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        bracket = token[0]
        if bracket in ("[", "{"):
            depth += 1
            if depth > _MAX_DEPTH:
                return True
        elif bracket in ("]", "}"):
            depth -= 1
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def completion_request(
    body: Mapping[str, Any],
    *,
    path: DeliveryPath,
    reference: SessionReference,
    history: tuple[ChatMessage, ...] = (),
) -> tuple[CompletionRequest, dict[str, Any]]:
    """The validated request and all validated values of its body. Raises ``RequestError``."""
    serializer = InferenceSerializer(data=dict(body))
    if not serializer.is_valid():
        message, field = _first_problem(serializer.errors)
        raise invalid(message, field=field)
    values: dict[str, Any] = serializer.validated_data
    turns = values.get("conversation_context") or []
    earlier = tuple(ChatMessage(role=turn["role"], content=turn["content"]) for turn in turns) or history
    request = CompletionRequest(
        reference=reference,
        model=values["model"],
        messages=(*earlier, ChatMessage(role="user", content=values["prompt"])),
        max_tokens=values["max_tokens"],
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=values["top_k"],
        repetition_penalty=values["repetition_penalty"],
        path=path,
        client_request_id=values.get("request_id") or "",
    )
    return request, values


def _first_problem(errors: Any) -> tuple[str, str]:
    """One readable sentence out of a serializer's errors, and the field it is about."""
    field, problem = next(iter(errors.items()))
    while isinstance(problem, dict | list):
        problem = next(iter(problem.values())) if isinstance(problem, dict) else next((p for p in problem if p), "")
    text = str(problem)
    return f"{field}: {text[:1].lower()}{text[1:]}", field
