"""The count of one answer: what the server told, and nothing else.

Guarantees: the count grows by token ids that were told and by totals that were told, never by events
or characters; end tokens are left out; it never exceeds what was asked for. Pure.
"""

from __future__ import annotations

from jobs.inference.openai_http_dialects import Piece


class Tally:
    """Feed pieces, take what they add to the bill. ``limit`` in completion tokens."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._told = 0
        self._end_tokens = 0
        self._ids: list[int] = []
        self._untold = 0

    @property
    def told(self) -> int:
        """Completion tokens so far, without end tokens."""
        return self._told

    def add(self, piece: Piece) -> None:
        """Count what ``piece`` tells. Ids and total speak of the same tokens; the larger count holds."""
        ids = list(piece.ids)
        if piece.end_token:
            self._end_tokens += 1
            # Known from the total alone where ids are not told.
            del ids[-1:]
        told = self._told + len(ids)
        if piece.total is not None:
            told = max(told, piece.total - self._end_tokens)
        self._grow_to(told, ids)

    def add_tokenized(self, tokens: int) -> None:
        """The server's own tokenizer finds ``tokens`` in the whole text, whose total it never told."""
        self._grow_to(max(self._told, tokens), [])

    def take(self) -> tuple[tuple[int, ...], int]:
        """Ids told, and the number of tokens whose ids were not told, since the last call."""
        taken = tuple(self._ids), self._untold
        self._ids, self._untold = [], 0
        return taken

    def _grow_to(self, told: int, ids: list[int]) -> None:
        fresh = min(told, self._limit) - self._told
        del ids[fresh:]
        self._ids += ids
        self._untold += fresh - len(ids)
        self._told += fresh
