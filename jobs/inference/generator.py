"""What a loaded model must be able to do for the scheduler: encode, generate batches, decode.

Guarantees nothing by itself; it is the seam between the scheduler and whatever computes tokens
(CTranslate2, or a script in tests). Everything here blocks and is called outside the event loop,
except ``detokenizer`` and ``decode``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.inference.detokenizer import Detokenizer
from jobs.inference.engine import ChatMessage, GenerationRequest, LoadedModel, TokenProbability


class ModelLoadError(Exception):
    """A model cannot be served; the text is one line that says what is wrong and what to do."""


class OutOfMemory(Exception):
    """A batch did not fit into the device's memory; a smaller one may."""


class Row(Protocol):
    """One request in a batch. May be used from the thread that computes and from the event loop."""

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""
        ...

    @property
    def context(self) -> tuple[int, ...]:
        """Token ids to start from: the prompt, and what earlier batches generated for this request."""
        ...

    @property
    def produced(self) -> int:
        """How many token ids were generated for it, in all its batches."""
        ...

    @property
    def remaining(self) -> int:
        """How many token ids may still be produced (≥ 1 at the start of a batch)."""
        ...

    @property
    def stopped(self) -> threading.Event:
        """Set once the request is over; nothing more can be delivered."""
        ...

    def deliver(self, token: int, probability: TokenProbability | None = None) -> bool:
        """Take a completion token id, never an end token. True if the row must leave the batch."""
        ...

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """The model ended the row itself."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows with the same sampling options, and how their computation is steered.

    ``on_step`` is called after each step in which any row produced something. Once ``interrupted``
    is set, all rows leave within one token each, whether they are finished or not.
    """

    rows: Sequence[Row]
    on_step: Callable[[], None]
    interrupted: threading.Event


class TokenGenerator(Protocol):
    """A loaded model. ``run`` is called from at most ``loaded.replicas`` threads at a time."""

    @property
    def loaded(self) -> LoadedModel:
        """What is shown to the operator and to clients."""
        ...

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Prompt token ids of a conversation. Raises ``RequestRefused``."""
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of text as it is, without a template and with control tokens as plain text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of all ids at once."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A detokenizer at the start of a stream."""
        ...

    def run(self, batch: Batch) -> None:
        """Generate until every row has left. Raises ``GenerationFailed`` or ``OutOfMemory``."""
        ...

    def close(self) -> None:
        """Free the model. Nothing may be called afterwards."""
        ...
