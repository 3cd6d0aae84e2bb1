"""What was said in a session, for as long as its client may come back to it.

Guarantees that a conversation is bounded in turns, bytes and age and that all of them together are; that
it is found again only by who had it, on the job that it was about; and that it is in memory only: a
restart, or another web process, begins anew.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.inference.engine import ChatMessage

_MAX_TURNS = 32
_MAX_BYTES = 256 * 1024
_MAX_BYTES_OF_ALL = 64 * 1024 * 1024

Key = tuple[str, str]
"""What the conversation is about, and who has it."""


@dataclass(slots=True)
class Conversation:
    """Turns in order, the oldest dropped first."""

    turns: list[ChatMessage] = field(default_factory=list)
    size: int = 0
    used_at: float = 0.0

    def add(self, *, prompt: str, answer: str) -> None:
        """One exchange more."""
        self.turns += [ChatMessage(role="user", content=prompt), ChatMessage(role="assistant", content=answer)]
        self.size += _size(prompt) + _size(answer)
        while self.turns and (len(self.turns) > _MAX_TURNS or self.size > _MAX_BYTES):
            self.size -= _size(self.turns.pop(0).content)

    def clear(self) -> None:
        self.turns.clear()
        self.size = 0


class Conversations:
    """The conversations of one process."""

    def __init__(self, *, kept_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._by_key: OrderedDict[Key, Conversation] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, key: Key) -> Conversation:
        """The conversation of ``key``, or a new one."""
        self._forget_old()
        conversation = self._by_key.setdefault(key, Conversation())
        self._touch(key, conversation)
        return conversation

    def touch(self, key: Key) -> None:
        """Its socket is still there."""
        if (conversation := self._by_key.get(key)) is not None:
            self._touch(key, conversation)

    def _touch(self, key: Key, conversation: Conversation) -> None:
        conversation.used_at = self._clock()
        self._by_key.move_to_end(key)

    def _forget_old(self) -> None:
        oldest = self._clock() - self._kept_seconds
        while self._by_key and next(iter(self._by_key.values())).used_at < oldest:
            self._by_key.popitem(last=False)
        total = sum(conversation.size for conversation in self._by_key.values())
        while total > _MAX_BYTES_OF_ALL:
            total -= self._by_key.popitem(last=False)[1].size


def _size(text: str) -> int:
    return len(text.encode())
