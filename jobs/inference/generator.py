"""What a loaded model must be able to do for the scheduler: encode, generate in a thread, decode.

Guarantees nothing by itself; it is the seam between the scheduler and whatever computes tokens
(CTranslate2, or a script in tests). Everything here blocks and is called outside the event loop,
except ``detokenizer``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.inference.detokenizer import Detokenizer
from jobs.inference.engine import ChatMessage, GenerationRequest, LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTask:
    """One generation for one replica.

    ``limit`` is the number of token ids to produce at most (≥ 1): the request's ``max_tokens`` or
    what the context leaves. ``on_token`` takes each completion token id, never an end token.
    Once ``stopped`` is set no further id may be delivered.
    """

    request: GenerationRequest
    prompt: tuple[int, ...]
    limit: int
    on_token: Callable[[int], None]
    stopped: threading.Event


class ModelLoadError(Exception):
    """A model cannot be served; the text is one line that says what is wrong and what to do."""


class TokenGenerator(Protocol):
    """A loaded model. ``run`` is called from at most ``loaded.replicas`` threads at a time."""

    @property
    def loaded(self) -> LoadedModel:
        """What is shown to the operator and to clients."""
        ...

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Prompt token ids of a conversation. Raises ``RequestRefused``."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A detokenizer at the start of a stream."""
        ...

    def run(self, task: GenerationTask) -> Literal["stop", "length"]:
        """Generate until an end token, the limit or ``stopped``. Raises ``GenerationFailed``."""
        ...

    def close(self) -> None:
        """Free the model. Nothing may be called afterwards."""
        ...
