"""``/v1/chat/completions``: from its body to completion requests, and the shape of its answers.

Guarantees that every message reaches the model's chat template as it was sent: what the template cannot
express (images, tools, names) is refused by the place where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rest_framework import serializers

from jobs.callers import Caller
from jobs.completions import CompletionRequest
from jobs.inference.engine import ChatMessage, TokenProbability
from jobs.models import DeliveryPath
from jobs.openai.errors import unsupported
from jobs.openai.logprobs import chat_logprobs
from jobs.openai.parameters import (
    NEUTRAL_IN_CHAT,
    SESSION_FIELDS,
    ChatSerializer,
    Demand,
    limit_of,
    refuse_unless_neutral,
    validated,
)
from jobs.protocol import SessionReference, invalid
from jobs.strict_fields import StrictText, problem_of

MOST_MESSAGES = 1000

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}

# What the API itself puts into the messages it returns, and clients send back.
NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "tool_calls": ([],),
    "function_call": (),
}


def chat_demand(
    body: Mapping[str, Any], *, reference: SessionReference, caller: Caller, request_id: str, most_tokens: int
) -> Demand:
    """What ``body`` asks for. Raises ``RequestError``."""
    values = validated(body, ChatSerializer, neutral=NEUTRAL_IN_CHAT, besides=("messages", *SESSION_FIELDS))
    if "top_logprobs" in values and not values["logprobs"]:
        raise invalid("top_logprobs is only allowed with logprobs: true.", field="top_logprobs")
    names = ("max_completion_tokens", "max_tokens")
    request = CompletionRequest(
        reference=reference,
        model=values["model"],
        messages=messages_of(body.get("messages")),
        max_tokens=limit_of(values, names=names, otherwise=most_tokens, at_most=most_tokens),
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=values["top_k"],
        repetition_penalty=values["repetition_penalty"],
        stop=values["stop"],
        top_logprobs=values.get("top_logprobs", 0) if values["logprobs"] else None,
        path=DeliveryPath.OPENAI_SSE if values["stream"] else DeliveryPath.OPENAI_JSON,
        caller=caller,
        client_request_id=request_id,
    )
    return Demand(
        requests=(request,) * values["n"],
        choices_per_prompt=values["n"],
        stream=values["stream"],
        include_usage=bool(values.get("stream_options", {}).get("include_usage")),
        logprobs=values["logprobs"],
    )


class ChatShape:
    """How a chat completion is written."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, text: str, probabilities: Sequence[TokenProbability] | None) -> dict[str, Any]:
        """A whole choice."""
        return {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if probabilities is None else chat_logprobs(probabilities),
        }

    def opening(self) -> dict[str, Any] | None:
        """What a streamed choice begins with."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece(self, text: str, probabilities: Sequence[TokenProbability] | None, *, offset: int) -> dict[str, Any]:
        """A part of a streamed choice."""
        return {
            "delta": {"content": text},
            "logprobs": None if probabilities is None else chat_logprobs(probabilities),
        }

    def ending(self) -> dict[str, Any]:
        """What a streamed choice ends with."""
        return {"delta": {}, "logprobs": None}


def messages_of(value: object) -> tuple[ChatMessage, ...]:
    """The conversation in ``messages``. Raises ``RequestError``."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
        raise invalid(f"messages must be a list of 1 to {MOST_MESSAGES} messages.", field="messages")
    return tuple(_message(message, place=f"messages[{number}]") for number, message in enumerate(value))


def _message(message: object, *, place: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise invalid(f"{place} must be an object with role and content.", field=place)
    role = message.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{place}.role", hint=f"it calls no tools, leave out messages of the role {role}")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{place}.role must be system, developer, user or assistant.", field=f"{place}.role")
    for name, given in message.items():
        if name in ("role", "content") or given is None:
            continue
        if name not in NEUTRAL_IN_MESSAGES:
            raise unsupported(f"{place}.{name[:80]}", hint="the chat templates have no place for it, leave it out")
        refuse_unless_neutral(f"{place}.{name}", given, NEUTRAL_IN_MESSAGES[name])
    return ChatMessage(role=ROLES[role], content=_content(message.get("content"), place=f"{place}.content"))


def _content(content: object, *, place: str) -> str:
    if isinstance(content, str):
        return _text(content, place=place)
    if not isinstance(content, list) or not content:
        raise invalid(f"{place} must be a string or a list of text parts.", field=place)
    return "".join(_part(part, place=f"{place}[{number}]") for number, part in enumerate(content))


def _part(part: object, *, place: str) -> str:
    if not isinstance(part, dict):
        raise invalid(f"{place} must be an object with type and text.", field=place)
    if part.get("type") != "text":
        kind = part.get("type")
        if not isinstance(kind, str):
            raise invalid(f"{place}.type must be text.", field=f"{place}.type")
        raise unsupported(f"{place}.type", hint=f"its models read text alone, not {kind[:40]}")
    for name in part:
        if name not in ("type", "text"):
            raise unsupported(f"{place}.{name[:80]}", hint="leave it out")
    return _text(part.get("text"), place=f"{place}.text")


def _text(value: object, *, place: str) -> str:
    field = StrictText(allow_blank=True)
    try:
        return str(field.run_validation(value))
    except serializers.ValidationError as error:
        raise invalid(problem_of({place: error.detail})[0], field=place) from error
