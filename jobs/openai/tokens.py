"""``/tokenize`` and ``/detokenize``: how the host counts, for clients that want to count alike.

Guarantees that the ids are those that a prompt of the same text would have. Generates and bills nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from jobs.inference.engine import Engine, EngineError, TextToTokenize
from jobs.openai import models
from jobs.openai.chat import messages_of
from jobs.openai.parameters import validated
from jobs.protocol import invalid
from jobs.refusals import refusal_of
from jobs.strict_fields import StrictText, TokenIds

NEUTRAL_IN_TOKENIZE: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "add_generation_prompt": (True,),
    "return_token_strs": (False,),
}


class TokenizeSerializer(serializers.Serializer[Any]):
    """The body of ``POST /tokenize``: ``prompt`` or, read elsewhere, ``messages``."""

    model = StrictText(max_length=200)
    prompt = StrictText(allow_blank=True, required=False)


class DetokenizeSerializer(serializers.Serializer[Any]):
    """The body of ``POST /detokenize``."""

    model = StrictText(max_length=200)
    tokens = TokenIds()


async def tokenize(body: Mapping[str, Any], *, engine: Engine) -> dict[str, Any]:
    """The answer of ``POST /tokenize``. Raises ``RequestError``."""
    values = validated(body, TokenizeSerializer, neutral=NEUTRAL_IN_TOKENIZE, besides=("messages",))
    if ("prompt" in values) == (body.get("messages") is not None):
        raise invalid("Send prompt or messages, one of the two.", field="prompt")
    messages = () if "prompt" in values else messages_of(body.get("messages"))
    model = await models.resolved(values["model"])
    try:
        ids = await engine.tokenize(TextToTokenize(model=model.id, messages=messages, prompt=values.get("prompt")))
    except EngineError as failure:
        raise refusal_of(failure) from failure
    return {"count": len(ids), "max_model_len": model.context_length, "tokens": list(ids), "model": model.id}


async def detokenize(body: Mapping[str, Any], *, engine: Engine) -> dict[str, Any]:
    """The answer of ``POST /detokenize``. Raises ``RequestError``."""
    values = validated(body, DetokenizeSerializer, neutral={})
    model = await models.resolved(values["model"])
    try:
        text = await engine.detokenize(model=model.id, token_ids=tuple(values["tokens"]))
    except EngineError as failure:
        raise refusal_of(failure) from failure
    return {"prompt": text, "model": model.id}
