"""``/v1/completions``: from its body to completion requests, and the shape of its answers.

Guarantees that a prompt reaches the model as it is, without a chat template; several prompts in one
request are several completions, each metered, up to the number of choices allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rest_framework import serializers

from jobs.callers import Caller
from jobs.completions import CompletionRequest
from jobs.inference.engine import TokenProbability
from jobs.models import DeliveryPath
from jobs.openai.logprobs import completion_logprobs
from jobs.openai.parameters import (
    MOST_CHOICES,
    NEUTRAL_IN_COMPLETIONS,
    SESSION_FIELDS,
    CompletionsSerializer,
    Demand,
    limit_of,
    validated,
)
from jobs.protocol import SessionReference, invalid
from jobs.strict_fields import StrictText, TokenIds, problem_of

# As the API has it: who wants more says so.
DEFAULT_TOKENS = 16

Prompt = str | tuple[int, ...]


def text_demand(
    body: Mapping[str, Any], *, reference: SessionReference, caller: Caller, request_id: str, most_tokens: int
) -> Demand:
    """What ``body`` asks for. Raises ``RequestError``."""
    values = validated(body, CompletionsSerializer, neutral=NEUTRAL_IN_COMPLETIONS, besides=("prompt", *SESSION_FIELDS))
    prompts = _prompts(body.get("prompt"))
    if len(prompts) > 1 and values["n"] > 1:
        raise invalid("n is only allowed with one prompt. Send the prompts one by one.", field="n")
    limit = limit_of(values, names=("max_tokens",), otherwise=min(DEFAULT_TOKENS, most_tokens), at_most=most_tokens)
    requests = [
        CompletionRequest(
            reference=reference,
            model=values["model"],
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
            max_tokens=limit,
            temperature=values["temperature"],
            top_p=values["top_p"],
            top_k=values["top_k"],
            repetition_penalty=values["repetition_penalty"],
            stop=values["stop"],
            top_logprobs=values.get("logprobs"),
            path=DeliveryPath.OPENAI_SSE if values["stream"] else DeliveryPath.OPENAI_JSON,
            caller=caller,
            client_request_id=request_id,
        )
        for prompt in prompts
        for _ in range(values["n"])
    ]
    return Demand(
        requests=tuple(requests),
        choices_per_prompt=values["n"],
        stream=values["stream"],
        include_usage=bool(values.get("stream_options", {}).get("include_usage")),
        logprobs="logprobs" in values,
    )


class TextShape:
    """How a text completion is written."""

    prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def choice(self, text: str, probabilities: Sequence[TokenProbability] | None) -> dict[str, Any]:
        """A whole choice."""
        return self.piece(text, probabilities, offset=0)

    def opening(self) -> dict[str, Any] | None:
        """A streamed choice begins with its text."""
        return None

    def piece(self, text: str, probabilities: Sequence[TokenProbability] | None, *, offset: int) -> dict[str, Any]:
        """A part of a streamed choice that begins ``offset`` characters into its tokens' text."""
        return {
            "text": text,
            "logprobs": None if probabilities is None else completion_logprobs(probabilities, offset=offset),
        }

    def ending(self) -> dict[str, Any]:
        """What a streamed choice ends with."""
        return {"text": "", "logprobs": None}


def _prompts(value: object) -> list[Prompt]:
    """The prompts in a string, a list of strings, a list of token ids or a list of such lists."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > MOST_CHOICES:
            raise invalid(f"prompt may hold at most {MOST_CHOICES} prompts.", field="prompt")
        return [_prompt(prompt, place=f"prompt[{number}]") for number, prompt in enumerate(value)]
    return [_prompt(value, place="prompt")]


def _prompt(value: object, *, place: str) -> Prompt:
    try:
        if isinstance(value, str):
            text = str(StrictText(allow_blank=True).run_validation(value))
            if text:
                return text
        elif isinstance(value, list):
            return tuple(TokenIds(min_length=1).run_validation(value))
    except serializers.ValidationError as error:
        raise invalid(problem_of({place: error.detail})[0], field=place) from error
    raise invalid(f"{place} must be text or a list of token ids, and not empty.", field=place)
