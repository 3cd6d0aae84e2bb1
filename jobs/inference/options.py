"""What a generation request may ask of the engine: one kind of prompt, options within their ranges."""

from __future__ import annotations

from jobs.inference.engine import GenerationRequest, RequestRefused
from jobs.inference.lane import Lane

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16


def own_ids(token_ids: tuple[int, ...], *, lane: Lane) -> tuple[int, ...]:
    """The prompt's ids as given, if the lane's model knows each; raises ``RequestRefused``."""
    size = lane.generator.loaded.vocabulary_size
    if not token_ids or any(not 0 <= token < size for token in token_ids):
        raise RequestRefused(f"The prompt must be one or more token ids from 0 to {size - 1}.")
    return token_ids


def check_options(request: GenerationRequest) -> None:
    """Raises ``RequestRefused`` that names the ranges, unless every option lies in its own."""
    prompts = (bool(request.messages), request.prompt is not None, request.prompt_ids is not None)
    if sum(prompts) != 1:
        raise RequestRefused("Exactly one of messages, a prompt text and prompt ids must be given.")
    sound = (
        request.max_tokens >= 1
        and 0.0 <= request.temperature <= 2.0
        and request.top_k >= 0
        and 0.0 < request.top_p <= 1.0
        and 0.0 < request.repetition_penalty <= 10.0
        and (request.top_logprobs is None or 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS)
        and len(request.stop) <= MAX_STOP_STRINGS
        and (request.patience_seconds is None or request.patience_seconds >= 0)
    )
    if not sound:
        raise RequestRefused(
            "An option is out of range: max_tokens ≥ 1, temperature 0 to 2, top_k ≥ 0, top_p above 0 to 1,"
            f" repetition_penalty above 0 to 10, top_logprobs 0 to {MAX_TOP_LOGPROBS},"
            f" at most {MAX_STOP_STRINGS} stop strings, patience_seconds ≥ 0."
        )
