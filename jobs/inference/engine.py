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

    Exactly one of ``messages`` (rendered with the model's own chat template), ``prompt`` (text as it
    is, without a template) and ``prompt_ids`` (token ids as they are) is given. ``max_tokens`` counts
    completion token ids (≥ 1). ``temperature`` 0 means greedy. ``top_k`` 0 means the whole vocabulary.

    The text ends before the first of the ``stop`` strings; the ids up to and including the one that
    completed it are delivered and counted. ``top_logprobs`` ``None``: no log probabilities; n ≥ 0:
    that of each chosen token and of its n likeliest alternatives.

    ``fair_share`` names who shares one place in the queue (a session, say): waiting requests of
    different names take turns. A higher ``priority`` goes first (paid jobs before unpaid ones). A
    request that has waited for ``patience_seconds`` ends with ``EngineBusy`` without having run.
    ``others_coming`` is how many more requests the sender is about to send: worth a moment's waiting, as
    requests that start together are computed together.
    """

    request_id: str
    model: str
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    max_tokens: int
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    fair_share: str = ""
    priority: int = 0
    patience_seconds: float | None = None
    others_coming: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProbability:
    """One token as the model saw it: its id, its own text (possibly part of a character) and natural log."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """A step of a generation.

    ``token_ids`` are the completion token ids that this chunk adds to the bill (possibly none);
    ``text`` is the text that became complete (possibly empty while a multi-byte character is
    unfinished, or while it may become a stop string). ``probabilities`` has one entry per token id if
    they were asked for, else none. The last chunk, and only it, has a ``finish_reason``.
    ``prompt_tokens`` is the length of the rendered prompt in token ids, the same on every chunk; 0 while
    it is not known, which only an engine elsewhere may leave open until its last chunk. ``untold`` counts
    tokens of such an engine that it reported without their ids; they are on the bill as well.
    ``queued_seconds``, on the first chunk, is how long the request waited for its turn, where that is known.
    """

    sequence: int
    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    probabilities: tuple[TokenProbability, ...] = ()
    untold: int = 0
    queued_seconds: float = 0.0

    @property
    def count(self) -> int:
        """Completion tokens that this chunk adds to the bill."""
        return len(self.token_ids) + self.untold


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToTokenize:
    """Text for ``model``: a conversation in its chat template, or ``prompt`` as it is."""

    model: str
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None


ModelState = Literal["loaded", "loading", "unloaded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that the engine serves. ``context_length`` is in token ids, prompt + completion.

    One that is not ``loaded`` is loaded by the first request that names it, which waits for it;
    ``progress`` is how much of that is done, 0 to 1. ``compute_type`` is the effective one.
    ``memory_bytes`` is what its weights take. A ``pinned`` model is never unloaded. ``replicas``
    batches run at the same time, each of at most ``batch_rows`` requests. ``problem`` says why a
    ``failed`` model could not be loaded.
    """

    model: str
    context_length: int
    vocabulary_size: int
    device: str
    compute_type: str
    replicas: int
    state: ModelState = "loaded"
    progress: float = 1.0
    pinned: bool = False
    memory_bytes: int = 0
    batch_rows: int = 1
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """What one model does now, and did since the engine started.

    ``running`` and ``waiting`` count requests; at most ``queue_size`` may wait. ``batch_rows`` is
    how many requests each running batch holds now. ``tokens_generated`` counts completion token ids,
    ``prompt_tokens`` those of the prompts of requests that ran, ``batches`` the batches started,
    ``refused`` the requests that found the queue full or lost their patience.
    """

    model: str
    state: ModelState
    running: int = 0
    waiting: int = 0
    queue_size: int = 0
    batch_rows: tuple[int, ...] = ()
    tokens_generated: int = 0
    prompt_tokens: int = 0
    batches: int = 0
    refused: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The load of an engine, one entry per model that it serves."""

    models: tuple[ModelStatus, ...]


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

    def busy(self) -> EngineBusy | None:
        """The refusal that every request would get now, as far as that is known without asking.

        None where some model has room, or nothing is known. It saves a refused request all other work.
        """
        ...

    async def models(self) -> tuple[LoadedModel, ...]:
        """The models that may be asked for, the default one first. Raises ``EngineUnavailable``."""
        ...

    async def status(self) -> EngineStatus:
        """How busy the engine is. Raises ``EngineUnavailable``."""
        ...

    async def tokenize(self, text: TextToTokenize) -> tuple[int, ...]:
        """The token ids that a prompt of this text would have. Raises an ``EngineError``."""
        ...

    async def detokenize(self, *, model: str, token_ids: tuple[int, ...]) -> str:
        """The text of ``token_ids``. Raises an ``EngineError``; ``RequestRefused`` for an unknown id."""
        ...
