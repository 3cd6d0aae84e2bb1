"""What a server's refusal means to this host: one typed error for each.

Guarantees that no error repeats what may be part of a prompt. Pure.
"""

from __future__ import annotations

import re

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    ModelNotLoaded,
    RequestRefused,
)
from jobs.inference.openai_http_wire import Refusal

_CONTEXT = re.compile(r"(?i)context[ _](?:length|size|window)|max_model_len|prompt is too long")
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT_SIZE = re.compile(r"(?i)context (?:length|size|window)[^0-9]{0,40}([0-9]{1,9})")
_PROMPT_SIZE = (
    re.compile(r"([0-9]{1,9}) in the (?:messages|prompt)"),
    re.compile(r"(?i)(?:contains|passed|has|length of|resulted in)[^0-9]{0,20}([0-9]{1,9})"),
    re.compile(r"(?i)\(([0-9]{1,9}) tokens\) exceeds"),
)


def exceeds_context(refusal: Refusal) -> bool:
    """Whether the server refused because prompt and answer do not fit its context."""
    words = {refusal.error.get("type"), refusal.error.get("code")}
    return refusal.status in (400, 413, 422) and bool(words & _CONTEXT_CODES or _CONTEXT.search(_message(refusal)))


def sizes_told(refusal: Refusal) -> tuple[int | None, int | None]:
    """Prompt tokens and context length as the refusal tells them, where it does."""
    prompt, context = refusal.error.get("n_prompt_tokens"), refusal.error.get("n_ctx")
    if type(prompt) is int and type(context) is int:
        return prompt, context
    message = _message(refusal)
    size = _CONTEXT_SIZE.search(message)
    found = next((match for pattern in _PROMPT_SIZE if (match := pattern.search(message))), None)
    return int(found[1]) if found else None, int(size[1]) if size else None


def context_error(*, prompt_tokens: int | None, context_length: int) -> ContextLengthExceeded:
    """A prompt whose length nobody told is at least as long as the context."""
    return ContextLengthExceeded(
        prompt_tokens=context_length if prompt_tokens is None else prompt_tokens, context_length=context_length
    )


def error_of(refusal: Refusal, *, model: str) -> EngineError:
    """The error for every other refusal of a request for ``model``."""
    status = refusal.status
    if 300 <= status < 400:
        return EngineUnavailable(
            "The inference server redirects, which is not followed: set FABSTIR_ENGINE_URL to the address that answers."
        )
    if status in (401, 403):
        return EngineUnavailable(f"The inference server refuses this host ({refusal}): check FABSTIR_ENGINE_API_KEY.")
    if status == 404:
        return ModelNotLoaded(f"The inference server does not serve {model}.")
    if status == 429 or (status == 503 and refusal.retry_after is not None):
        return EngineBusy("The inference server is busy.", retry_after=min(max(1, refusal.retry_after or 1), 3600))
    if status in (408, 502, 503, 504):
        return EngineUnavailable(f"The inference server is not ready ({refusal}).")
    if 400 <= status < 500:
        return RequestRefused(f"The inference server refuses the request ({refusal}).")
    return GenerationFailed(f"The inference server failed ({refusal}).")


def _message(refusal: Refusal) -> str:
    # Only the beginning: it may quote a prompt that speaks of contexts.
    return str(refusal.error.get("message", ""))[:300]
