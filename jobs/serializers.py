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
from jobs.openai.errors import unsupported
from jobs.openai.parameters import NEUTRAL, SESSION_FIELDS, refuse_unless_neutral
from jobs.protocol import SessionReference, invalid
from jobs.strict_fields import StopStrings, StrictBoolean, StrictInteger, StrictNumber, StrictText, read_by

_MAX_DEPTH = 100
_MAX_EXACT = 2**53

# What clients of the network send besides, whether or not a host offers it: the SDK asks for a web search
# by itself where a prompt says "today". An answer says that none was made.
_NETWORK_FIELDS = frozenset(
    {*SESSION_FIELDS, "chain_id", "chainId", "web_search", "max_searches", "search_queries", "thinking"}
)
NEUTRAL_IN_INFERENCE: dict[str, tuple[Any, ...]] = {**NEUTRAL, "images": ([],)}
THINKING = ("enabled", "disabled", "low", "medium", "high")
# An unfinished string runs to the end, so that no part of the text is looked at twice.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class TurnSerializer(serializers.Serializer[Any]):
    """One earlier turn of a conversation; ``timestamp`` and other extras are ignored."""

    role = serializers.ChoiceField(choices=["system", "user", "assistant"])
    content = StrictText(allow_blank=True)


class InferenceSerializer(serializers.Serializer[Any]):
    """The body of ``POST /v1/inference`` and the ``request`` of the WebSocket's messages."""

    model = StrictText(max_length=200)
    prompt = StrictText()
    max_tokens = StrictInteger(min_value=1)
    temperature = StrictNumber(min_value=0.0, max_value=2.0, default=0.7)
    top_p = StrictNumber(min_value=0.0001, max_value=1.0, default=1.0)
    top_k = StrictInteger(min_value=0, max_value=1000, default=0)
    repetition_penalty = StrictNumber(min_value=0.1, max_value=10.0, default=1.0)
    stop = StopStrings(default=())
    stream = StrictBoolean(default=False)
    request_id = StrictText(max_length=200, required=False, allow_null=True)
    conversation_context = serializers.ListField(child=TurnSerializer(), required=False, allow_null=True)


_INFERENCE = InferenceSerializer()


def parse_json_object(raw: bytes | str) -> dict[str, Any]:
    """The JSON object in ``raw``. Raises ``RequestError``."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
        if _is_deep(text):
            raise invalid(f"The JSON is nested more than {_MAX_DEPTH} levels deep.")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
    except UnicodeDecodeError as error:
        raise invalid("The body is not valid UTF-8.") from error
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    return value


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raise ``RequestError`` for a field of an inference's body that would have to be ignored, by its name."""
    known = _INFERENCE.fields
    for name, value in body.items():
        if name in known or name in _NETWORK_FIELDS or value is None:
            continue
        if name not in NEUTRAL_IN_INFERENCE:
            raise unsupported(name[:80], hint="it is not a field of this address, leave it out")
        refuse_unless_neutral(name, value, NEUTRAL_IN_INFERENCE[name])
    if body.get("thinking") not in (None, *THINKING):
        raise invalid(f"thinking must be one of {', '.join(THINKING)}.", field="thinking")


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


def _number(literal: str) -> float | int:
    """JSON has one kind of number: 5.0 is 5."""
    value = float(literal)
    return int(value) if value.is_integer() and abs(value) < _MAX_EXACT else value


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
    values = read_by(_INFERENCE, body)
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
        stop=values["stop"],
        path=path,
        client_request_id=values.get("request_id") or "",
    )
    return request, values
