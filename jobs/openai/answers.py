"""Answers in the shapes of the OpenAI API: one document, or server-sent events that end with ``[DONE]``.

Guarantees the usage in every answer, be it whole, cancelled or failed, and that an end which the API has
no word for never passes for "stop": ``finish_detail`` says what it was. Does not bill.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.choices import Choices
from jobs.completions import CompletionEvent
from jobs.inference.engine import TokenProbability
from jobs.openai.errors import error_object
from jobs.openai.parameters import Demand
from jobs.protocol import RequestError
from jobs.streaming import DONE, PING, sse

# A deposit that is used up and a host that stops cut the text off, which is what "length" tells a client.
FINISH_REASONS = {"stop": "stop", "length": "length", "budget": "length", "cancelled": "length"}


class Shape(Protocol):
    """What chat and text completions write differently."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, text: str, probabilities: Sequence[TokenProbability] | None) -> dict[str, Any]: ...
    def opening(self) -> dict[str, Any] | None: ...
    def piece(self, text: str, probabilities: Sequence[TokenProbability] | None, *, offset: int) -> dict[str, Any]: ...
    def ending(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class _Text:
    """One choice, as far as it has come."""

    parts: list[str] = field(default_factory=list)
    probabilities: list[TokenProbability] = field(default_factory=list)
    finish: str = ""
    offset: int = 0
    opened: bool = False

    def add(self, event: CompletionEvent) -> None:
        self.parts.append(event.text)
        self.probabilities += event.probabilities


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer under way. ``fingerprint`` names the weights that answer."""

    shape: Shape
    demand: Demand
    choices: Choices
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """The answer as one document. Raises ``RequestError`` if a choice failed."""
        texts = [_Text() for _ in self.demand.requests]
        failure: RequestError | None = None
        async with aclosing(self.choices.pieces()) as pieces:
            async for piece in pieces:
                if piece is None:
                    continue
                texts[piece.index].add(piece.event)
                failure = failure or piece.event.error
                texts[piece.index].finish = piece.event.finish_reason or ""
        if failure is not None:
            raise self.choices.failed(failure)
        choices = [
            self._choice(
                index,
                self.shape.choice("".join(text.parts), text.probabilities if self.demand.logprobs else None),
                finish=text.finish,
            )
            for index, text in enumerate(texts)
        ]
        return {**self._head(self.shape.whole), "choices": choices, "usage": self._usage(), **self._extensions()}

    async def events(self, *, ping_seconds: float) -> AsyncIterator[bytes]:
        """The answer as server-sent events; a failure is one of them, and the last but ``[DONE]``."""
        texts = [_Text() for _ in self.demand.requests]
        unended = len(texts)
        failure: RequestError | None = None
        if not self.choices.completions:
            yield PING
        async with aclosing(self.choices.pieces(ping_seconds=ping_seconds)) as pieces:
            async for piece in pieces:
                if piece is None:
                    yield PING
                    continue
                failure = failure or piece.event.error
                unended -= piece.event.finish_reason is not None
                if failure is None:
                    for chunk in self._chunks(piece.index, texts[piece.index], piece.event, last=not unended):
                        yield sse(chunk)
        if failure is not None:
            yield sse({**error_object(self.choices.failed(failure)), "usage": self._usage()})
        elif self.demand.include_usage:
            yield sse({**self._head(self.shape.chunk), "choices": [], "usage": self._usage(), **self._extensions()})
        yield DONE

    def _chunks(self, index: int, text: _Text, event: CompletionEvent, *, last: bool) -> list[dict[str, Any]]:
        """What one event adds to the stream."""
        parts: list[dict[str, Any]] = []
        opening = None if text.opened else self.shape.opening()
        text.opened = True
        if opening is not None:
            parts.append(self._chunk(self._choice(index, opening)))
        asked = event.probabilities if self.demand.logprobs else None
        if event.text or asked:
            parts.append(self._chunk(self._choice(index, self.shape.piece(event.text, asked, offset=text.offset))))
            text.offset += sum(len(entry.token) for entry in event.probabilities)
        if event.finish_reason is not None:
            ending = self._chunk(self._choice(index, self.shape.ending(), finish=event.finish_reason))
            if last and not self.demand.include_usage:
                ending |= {"usage": self._usage(), **self._extensions()}
            parts.append(ending)
        return parts

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head(self.shape.chunk), "choices": [choice]}
        if self.demand.include_usage:
            chunk["usage"] = None
        return chunk

    def _choice(self, index: int, content: dict[str, Any], *, finish: str = "") -> dict[str, Any]:
        choice = {"index": index, **content, "finish_reason": FINISH_REASONS.get(finish)}
        if finish:
            choice["finish_detail"] = finish
        return choice

    def _head(self, kind: str) -> dict[str, Any]:
        admitted = next(iter(self.choices.completions.values()), None)
        return {
            # As the ledger has it, so that what was paid can be found by what was received.
            "id": self.shape.prefix + ("" if admitted is None else admitted.id.hex),
            "object": kind,
            "created": self.created,
            # The model that runs, under whatever name it was asked for.
            "model": self.demand.requests[0].model if admitted is None else admitted.model,
            "system_fingerprint": self.fingerprint,
        }

    def _usage(self) -> dict[str, int]:
        return self.choices.usage()

    def _extensions(self) -> dict[str, Any]:
        """What this host says beyond the API: how long it took, and who pays."""
        timings, usage = self.choices.timings(), self._usage()
        seconds = timings.predicted_ms / 1000
        billing = self.choices.billing()
        return {
            "timings": {
                "prompt_n": usage["prompt_tokens"],
                "prompt_ms": round(timings.prompt_ms, 3),
                "predicted_n": usage["completion_tokens"],
                "predicted_ms": round(timings.predicted_ms, 3),
                "predicted_per_second": round(usage["completion_tokens"] / seconds, 3) if seconds > 0 else None,
            },
            "billing": None if billing is None else billing.body(),
        }
