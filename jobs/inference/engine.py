"""The engine as the rest of the node sees it: plain values in, a stream of token chunks out.

Guarantees: completion tokens are counted by id where they are generated, without the
end-of-sequence token; ``TokenChunk.sequence`` grows by one per chunk of a request; text never
splits a character. Does not know sessions, jobs, billing or the database.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation. ``role`` is system, user or assistant."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate.

    ``messages`` are rendered with the model's own chat template. ``max_tokens`` counts completion
    token ids (≥ 1). ``temperature`` 0 means greedy. ``top_k`` 0 means the whole vocabulary.
    """

    request_id: str
    model: str
    messages: tuple[ChatMessage, ...]
    max_tokens: int
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """A step of a generation.

    ``token_ids`` are the completion token ids that this chunk adds to the bill (possibly none);
    ``text`` is the text that became complete (possibly empty while a multi-byte character is
    unfinished). The last chunk, and only it, has a ``finish_reason``. ``prompt_tokens`` is the
    length of the rendered prompt in token ids, the same on every chunk.
    """

    sequence: int
    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that the engine serves now. ``context_length`` is in token ids, prompt + completion."""

    model: str
    context_length: int
    vocabulary_size: int
    device: str
    compute_type: str
    replicas: int


class EngineError(Exception):
    """Base of everything an engine may answer instead of tokens."""


class EngineUnavailable(EngineError):
    """The engine process is not there, is starting, or died during the request. Try again."""


class EngineBusy(EngineError):
    """The engine's queue is full. Try again after ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotLoaded(EngineError):
    """The engine does not serve the named model."""


class ContextLengthExceeded(EngineError):
    """The rendered prompt leaves no room for a single completion token."""

    def __init__(self, *, prompt_tokens: int, context_length: int) -> None:
        over = prompt_tokens - context_length
        super().__init__(
            f"Prompt ({prompt_tokens} tokens) exceeds context window ({context_length} tokens)"
            + (f" by {over} tokens" if over > 0 else "")
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class RequestRefused(EngineError):
    """The request itself cannot be served: the model's chat template refuses the conversation, an

    option is out of range or the request id is in use. Raised before the first chunk; do not retry.
    """


class GenerationFailed(EngineError):
    """The engine failed inside a generation. Chunks delivered before remain valid and billable."""


class Engine(Protocol):
    """Anything that turns a request into token chunks."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Stream the completion of ``request``.

        Closing the iterator early abandons the generation; the engine stops within one token and
        what it produced meanwhile is unknown to the caller: use ``cancel`` to learn the exact count.
        Raises an ``EngineError``; ``ContextLengthExceeded``, ``ModelNotLoaded`` and ``EngineBusy``
        only before the first chunk.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """Stop a generation. Its stream ends with a chunk of ``finish_reason`` "cancelled" that

        carries the token ids produced until then, so that a cancelled stream is billed exactly.
        Does nothing if the request has ended or is unknown.
        """
        ...

    async def models(self) -> tuple[LoadedModel, ...]:
        """The models served now. Raises ``EngineUnavailable``."""
        ...
