"""The text of one generation: complete characters, ending before the first stop string.

Guarantees: what was given out is never taken back, so text that may still become a stop string is
held back until that is decided; where the text ends does not depend on how its characters were
split over tokens: it is the stop string that is completed first, and among those completed by the
same character the longest. Does not count tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.inference.detokenizer import Detokenizer


class TextStream:
    """Turns token ids into text, step by step."""

    def __init__(self, detokenizer: Detokenizer, *, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this id completes. Once ``stopped`` is true there is no more."""
        return self._pass(self._detokenizer.push((token,)))

    def flush(self) -> str:
        """The rest at the end of the generation."""
        if self.stopped:
            return ""
        text = self._pass(self._detokenizer.flush())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _pass(self, text: str) -> str:
        if not self._stop:
            return text
        held = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)[1]]
        keep = max(_overlap(held, stop) for stop in self._stop)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
