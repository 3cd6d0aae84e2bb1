"""Parameters of the OpenAI API: which this host honours, and which values of the others change nothing.

Guarantees that no parameter is ignored: one that would have to be is refused by its name, known or not.
A value that asks for nothing (``null``, ``"presence_penalty": 0``) is accepted, since clients send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rest_framework import serializers

from jobs.completions import CompletionRequest
from jobs.openai.errors import unsupported
from jobs.protocol import invalid
from jobs.strict_fields import (
    StopStrings,
    StrictBoolean,
    StrictInteger,
    StrictNumber,
    StrictText,
    read_by,
)

MOST_CHOICES = 8
_MOST_ALTERNATIVES = 20

SESSION_FIELDS = ("job_id", "jobId", "session_id", "sessionId")

# Parameters of the OpenAI API and of servers like it, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "seed": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
}
NEUTRAL_IN_CHAT: dict[str, tuple[Any, ...]] = {
    **NEUTRAL,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
NEUTRAL_IN_COMPLETIONS: dict[str, tuple[Any, ...]] = {**NEUTRAL, "best_of": (1,), "echo": (False,), "suffix": ("",)}


class StreamOptionsSerializer(serializers.Serializer[Any]):
    """``stream_options``."""

    include_usage = StrictBoolean(default=False, allow_null=True)


class SamplingSerializer(serializers.Serializer[Any]):
    """What chat and text completions have in common. ``null`` is the same as leaving a parameter out."""

    model = StrictText(max_length=200)
    max_tokens = StrictInteger(min_value=1, required=False)
    temperature = StrictNumber(min_value=0.0, max_value=2.0, default=1.0)
    top_p = StrictNumber(min_value=0.0001, max_value=1.0, default=1.0)
    top_k = StrictInteger(min_value=0, max_value=1000, default=0)
    repetition_penalty = StrictNumber(min_value=0.1, max_value=10.0, default=1.0)
    n = StrictInteger(min_value=1, max_value=MOST_CHOICES, default=1)
    stop = StopStrings(default=())
    stream = StrictBoolean(default=False)
    stream_options = StreamOptionsSerializer(required=False)
    # Names an end user to OpenAI; here it stands for nobody, and is accepted since frameworks send it.
    user = StrictText(max_length=200, allow_blank=True, required=False)


class ChatSerializer(SamplingSerializer):
    """The body of ``POST /v1/chat/completions`` besides its messages."""

    max_completion_tokens = StrictInteger(min_value=1, required=False)
    logprobs = StrictBoolean(default=False)
    top_logprobs = StrictInteger(min_value=0, max_value=_MOST_ALTERNATIVES, required=False)


class CompletionsSerializer(SamplingSerializer):
    """The body of ``POST /v1/completions`` besides its prompt."""

    logprobs = StrictInteger(min_value=0, max_value=_MOST_ALTERNATIVES, required=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a client asks for: the completions, and how it wants to read them.

    ``requests`` are ``choices_per_prompt`` for each prompt, in order.
    """

    requests: tuple[CompletionRequest, ...]
    choices_per_prompt: int
    stream: bool
    include_usage: bool
    logprobs: bool

    def within(self, context_length: int) -> Demand:
        """This demand without tokens that the model's context could not hold anyway."""
        requests = (replace(each, max_tokens=min(each.max_tokens, context_length)) for each in self.requests)
        return replace(self, requests=tuple(requests))


def validated(
    body: Mapping[str, Any],
    serializer_class: type[serializers.Serializer[Any]],
    *,
    neutral: Mapping[str, tuple[Any, ...]],
    besides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The validated parameters of ``body``. ``besides`` are fields that somebody else reads.

    Raises ``RequestError`` for a bad value, and by its name for what is not supported.
    """
    given = {name: value for name, value in body.items() if value is not None}
    serializer = _serializer(serializer_class)
    known = serializer.fields
    for name, value in given.items():
        if name in neutral:
            refuse_unless_neutral(name, value, neutral[name])
        elif name not in known and name not in besides:
            raise unsupported(name[:80], hint="it is not a parameter of this address, leave it out")
    values = read_by(serializer, {name: value for name, value in given.items() if name in known})
    _check_stream_options(given)
    return values


@cache
def _serializer(kind: type[serializers.Serializer[Any]]) -> serializers.Serializer[Any]:
    return kind()


def refuse_unless_neutral(name: str, value: object, neutral: tuple[Any, ...]) -> None:
    """Raise ``RequestError`` unless ``value`` is one of those that ask for nothing."""
    if not any(_same(value, harmless) for harmless in neutral):
        named = " or ".join(_as_json(harmless) for harmless in neutral)
        raise unsupported(name, hint=f"leave it out or send {named}" if neutral else "leave it out")


def limit_of(values: Mapping[str, Any], *, names: tuple[str, ...], otherwise: int, at_most: int) -> int:
    """The number of completion tokens asked for under one of ``names``. Raises ``RequestError``."""
    given = [name for name in names if name in values]
    if len(given) > 1:
        raise invalid(f"{' and '.join(given)} say the same. Send one of them.", field=given[1])
    if not given:
        return otherwise
    if values[given[0]] > at_most:
        raise invalid(f"{given[0]} must be at most {at_most}, got {values[given[0]]}.", field=given[0])
    return int(values[given[0]])


def _check_stream_options(given: Mapping[str, Any]) -> None:
    options = given.get("stream_options")
    if options is None:
        return
    if given.get("stream") is not True:
        raise invalid("stream_options is only allowed with stream: true.", field="stream_options")
    for name in options:
        if name not in StreamOptionsSerializer().fields:
            raise unsupported(f"stream_options.{name[:80]}", hint="leave it out")


def _same(value: object, other: object) -> bool:
    """Equal as JSON: to Python, false is 0 as well."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _as_json(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')
