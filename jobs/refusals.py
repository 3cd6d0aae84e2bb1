"""What a client is told when an answer cannot be given: one refusal for each kind of failure."""

from __future__ import annotations

from jobs.inference.engine import (
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    ModelNotLoaded,
    RequestRefused,
)
from jobs.metering import MeteringUnavailable
from jobs.protocol import RequestError, invalid

INTERNAL = RequestError(
    code="internal_error",
    message="The host failed to answer. Try again; its log has the details.",
    status=500,
)


def metering_unavailable(failure: MeteringUnavailable) -> RequestError:
    """The ledger cannot be written, so nothing more may be generated."""
    return RequestError(code="metering_unavailable", message=f"{failure} Try again later.", status=503)


def refusal_of(failure: EngineError) -> RequestError:
    """What a client is told about an engine's failure."""
    if isinstance(failure, ContextLengthExceeded):
        return RequestError(
            code="TOKEN_LIMIT_EXCEEDED",
            message=f"{failure}. Shorten the prompt or the conversation.",
            status=400,
            details={"prompt_tokens": failure.prompt_tokens, "context_window_size": failure.context_length},
        )
    if isinstance(failure, RequestRefused):
        return invalid(f"{failure}")
    if isinstance(failure, EngineBusy):
        return RequestError(
            code="service_unavailable",
            message="All slots of this host are taken. Try again shortly.",
            status=503,
            retry_after=failure.retry_after,
        )
    if isinstance(failure, ModelNotLoaded | EngineUnavailable):
        return RequestError(
            code="service_unavailable", message=f"{failure} Try again shortly.", status=503, retry_after=2
        )
    return RequestError(code="internal_error", message=f"Inference failed: {failure}", status=500)
