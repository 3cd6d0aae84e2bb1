"""Who looks on while requests are answered: figures and traces, without a say in what happens.

Guarantees that nobody looks on unless the site says so, and that an onlooker is told the same about
every path. Onlookers must not fail, wait or keep what a client wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.inference.engine import TokenChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRequest:
    """An admitted request on its way to the engine. ``model`` is an id of the catalog, ``asked`` the client's name."""

    id: str
    model: str
    asked: str
    path: str
    max_tokens: int
    temperature: float
    operation: Literal["chat", "text_completion"] = "chat"


class Watch(Protocol):
    """Follows one request. ``chunk`` is called for nearly every token: it must cost microseconds."""

    def chunk(self, chunk: TokenChunk) -> None:
        """Tokens came from the engine."""
        ...

    def ended(self, finish_reason: str, *, prompt_tokens: int, completion_tokens: int, error_code: str) -> None:
        """It is over, for whatever reason; called once. ``error_code`` is empty unless the reason is "error"."""
        ...


class Observer(Protocol):
    """Looks on for a whole process."""

    def request(self, request: ObservedRequest) -> Watch:
        """A request goes to the engine now."""
        ...

    def refused(self, code: str) -> None:
        """A request was refused before any token; ``code`` is that of its error."""
        ...

    def sockets(self, count: int) -> None:
        """How many WebSockets this process holds now."""
        ...


class Onlookers:
    """Several observers as one; none at all by default."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def request(self, request: ObservedRequest) -> Watch:
        """See ``Observer.request``."""
        watches = [observer.request(request) for observer in self._observers]
        return watches[0] if len(watches) == 1 else _Watches(watches)

    def refused(self, code: str) -> None:
        """See ``Observer.refused``."""
        for observer in self._observers:
            observer.refused(code)

    def sockets(self, count: int) -> None:
        """See ``Observer.sockets``."""
        for observer in self._observers:
            observer.sockets(count)


class _Watches:
    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def chunk(self, chunk: TokenChunk) -> None:
        for watch in self._watches:
            watch.chunk(chunk)

    def ended(self, finish_reason: str, *, prompt_tokens: int, completion_tokens: int, error_code: str) -> None:
        for watch in self._watches:
            watch.ended(
                finish_reason,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                error_code=error_code,
            )


UNOBSERVED = Onlookers()
UNWATCHED: Watch = _Watches(())
