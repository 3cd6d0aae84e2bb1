"""One request from admission to its last chunk.

Guarantees: every id is delivered exactly once and in order, also when the request runs in several
batches; nothing is delivered after the end, whatever the computing thread still produces; what was
produced before a failure is delivered before it. Does not decide when the request runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from jobs.inference.detokenizer import Detokenizer
from jobs.inference.engine import (
    EngineError,
    FinishReason,
    GenerationRequest,
    TokenChunk,
    TokenProbability,
)
from jobs.inference.text_stream import TextStream


class Generation:
    """The state of one request; a ``Row`` while it computes.

    ``notify`` is called in the event loop when ``take`` may have something. ``arrived`` is the
    moment (monotonic seconds) from which it waits for its turn; ``interruptions`` counts the batches
    that it left unfinished.
    """

    def __init__(self, request: GenerationRequest, *, notify: Callable[[], None]) -> None:
        self.request = request
        self.notify = notify
        self.arrived = time.monotonic()
        self.has_run = False
        self.interruptions = 0
        self.queued_seconds = 0.0
        self.limit = 0
        self.prompt: tuple[int, ...] = ()
        self.stopped = threading.Event()
        self.failure: EngineError | None = None
        self._text: TextStream | None = None
        self._produced: list[int] = []
        self._taken = 0
        self._pieces: list[str] = []
        self._probabilities: list[TokenProbability] = []
        self._reason: FinishReason | None = None
        self._sequence = 0
        self._closed = False
        self._lock = threading.Lock()

    def prepare(self, prompt: tuple[int, ...], *, limit: int, detokenizer: Detokenizer) -> None:
        """What it starts from, once the prompt is encoded; ``limit`` ids are produced at most."""
        self.prompt = prompt
        self.limit = limit
        self._text = TextStream(detokenizer, stop=self.request.stop)

    @property
    def context(self) -> tuple[int, ...]:
        """See ``Row.context``."""
        return (*self.prompt, *self._produced)

    @property
    def context_length(self) -> int:
        """The length of ``context``."""
        return len(self.prompt) + len(self._produced)

    @property
    def produced(self) -> int:
        """How many completion token ids there are, delivered or not."""
        return len(self._produced)

    @property
    def remaining(self) -> int:
        """See ``Row.remaining``."""
        return self.limit - len(self._produced)

    @property
    def is_over(self) -> bool:
        """Whether ``take`` has given everything; then ``failure`` says if it ended well."""
        return self._closed or (self.failure is not None and self._taken == len(self._produced) and not self._pieces)

    @property
    def hurries(self) -> bool:
        """Whether its client waits for what comes next: the first piece of the answer, or its end."""
        return self._sequence == 0 or self.stopped.is_set()

    def deliver(self, token: int, probability: TokenProbability | None = None) -> bool:
        """See ``Row.deliver``."""
        with self._lock:
            if self.stopped.is_set() or self._text is None:
                return True
            self._produced.append(token)
            if probability is not None:
                self._probabilities.append(probability)
            if text := self._text.push(token):
                self._pieces.append(text)
            if self._text.stopped:
                self._end("stop")
            elif len(self._produced) >= self.limit:
                self._end("length")
            return self.stopped.is_set()

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """See ``Row.finish``."""
        with self._lock:
            self._end(reason)

    def cancel(self) -> None:
        """End it now with what was produced until now."""
        with self._lock:
            self._end("cancelled")

    def fail(self, error: EngineError) -> None:
        """End it with ``error``, which follows what was produced."""
        with self._lock:
            if not self.stopped.is_set():
                self.failure = error
                self._end(None)

    def take(self) -> TokenChunk | None:
        """What came since the last call, as one chunk; None if there is nothing to tell."""
        with self._lock:
            ids = tuple(self._produced[self._taken :])
            text = "".join(self._pieces)
            reason = None if self._closed else self._reason
            if not ids and not text and reason is None:
                return None
            chunk = TokenChunk(
                sequence=self._sequence,
                token_ids=ids,
                text=text,
                prompt_tokens=len(self.prompt),
                finish_reason=reason,
                probabilities=tuple(self._probabilities),
                queued_seconds=0.0 if self._sequence else self.queued_seconds,
            )
            self._taken += len(ids)
            self._sequence += 1
            self._pieces.clear()
            self._probabilities.clear()
            self._closed = reason is not None
            return chunk

    def _end(self, reason: FinishReason | None) -> None:
        if not self.stopped.is_set():
            self._reason = reason
            if self._text is not None and (text := self._text.flush()):
                self._pieces.append(text)
            self.stopped.set()
