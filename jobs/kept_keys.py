"""Encrypted sessions of this process: their keys, and which of their messages were answered.

Guarantees that a message is answered once: its nonce tells it from every other, so that a copy of the
last one gets the same answer without another generation (clients send again what they sent on a dead
socket, under another id), and an older copy is refused. Sessions are found by their key, and by their id
for a client that reconnects and goes on without a new init. In memory only, for a bounded time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.callers import Caller
from jobs.encryption import SessionKey
from jobs.protocol import RequestError, SessionReference

_MAX_SESSIONS = 4096
_MAX_NONCES = 4096
_MAX_ANSWER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAnswer:
    """An answer that was given to its end. ``end`` is the stream's last frame, without ids."""

    text: str = field(repr=False)
    tokens: int
    finish_reason: str
    end: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class EncryptedSession:
    """One session key and what it is for. ``caller`` is proven by whoever can use the key."""

    key: SessionKey
    reference: SessionReference
    model: str
    caller: Caller
    used_at: float = 0.0
    _nonces: OrderedDict[str, GivenAnswer | None] = field(default_factory=OrderedDict)

    def earlier_answer(self, nonce: str) -> GivenAnswer | None:
        """``None`` for a message that was not seen before; it counts as seen from now on.

        Raises ``RequestError`` for a copy whose answer is not there, or not there any more.
        """
        nonce = nonce.lower().removeprefix("0x")
        if nonce not in self._nonces:
            self._nonces[nonce] = None
            if len(self._nonces) > _MAX_NONCES:
                self._nonces.popitem(last=False)
            return None
        if (answer := self._nonces[nonce]) is not None:
            return answer
        raise RequestError(
            code="MESSAGE_REPEATED",
            message="This very message was received before, and no answer to it is kept. Encrypt it anew.",
            status=409,
        )

    def answered(self, nonce: str, answer: GivenAnswer) -> None:
        """Keep the answer for a copy of its message; that of the message before is forgotten."""
        nonce = nonce.lower().removeprefix("0x")
        for earlier, kept in self._nonces.items():
            if kept is not None:
                self._nonces[earlier] = None
        if nonce in self._nonces and len(answer.text) <= _MAX_ANSWER_BYTES:
            self._nonces[nonce] = answer

    def failed(self, nonce: str) -> None:
        """The message got no answer: a copy of it may be tried again."""
        self._nonces.pop(nonce.lower().removeprefix("0x"), None)


class KeptKeys:
    """The encrypted sessions of one process."""

    def __init__(self, *, kept_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._by_key: OrderedDict[SessionKey, EncryptedSession] = OrderedDict()
        self._by_id: dict[str, SessionKey] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def keep(self, session: EncryptedSession, *, session_id: str) -> EncryptedSession:
        """Remember ``session``; an init that was sent twice finds what is known of its key."""
        self._forget_old()
        known = self._by_key.setdefault(session.key, session)
        self._by_id[session_id] = known.key
        self.touch(known)
        return known

    def find(self, session_id: str) -> EncryptedSession | None:
        """The session that an init last named so."""
        self._forget_old()
        key = self._by_id.get(session_id)
        return None if key is None else self._by_key.get(key)

    def touch(self, session: EncryptedSession) -> None:
        """It is in use."""
        session.used_at = self._clock()
        if session.key in self._by_key:
            self._by_key.move_to_end(session.key)

    def _forget_old(self) -> None:
        oldest = self._clock() - self._kept_seconds
        while self._by_key:
            stale = next(iter(self._by_key.values()))
            if stale.used_at >= oldest and len(self._by_key) <= _MAX_SESSIONS:
                break
            del self._by_key[stale.key]
            for name in [name for name, key in self._by_id.items() if key == stale.key]:
                del self._by_id[name]
