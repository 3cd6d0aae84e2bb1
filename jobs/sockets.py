"""All WebSockets of this process: how many there are, whose sessions they hold open, and who is told what.

One task looks after all of them, and only while there are any: it drops slow readers and the idle, renews
the presence of what is bound to sessions, and asks how far the claims of those sessions are. Guarantees
that an idle socket costs no task and no query.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from django.db import DatabaseError

from jobs import answers, progress, sessions
from jobs.completions import Serving
from jobs.connection import Connection
from jobs.conversations import Conversations, Key
from jobs.host_key import HostKey
from jobs.kept_keys import KeptKeys
from jobs.progress import NoProgress, ProgressFeed, SessionProgress
from jobs.socket_limits import SocketLimits
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

_LOOK_AFTER_SECONDS = 1.0
_PRESENCE_SECONDS = sessions.PRESENCE_LIFETIME.total_seconds() / 3


@dataclass(slots=True, kw_only=True)
class _Bound:
    """A session that sockets of this process hold open. ``named`` is how each of them calls it."""

    named: dict[UUID, str] = field(default_factory=dict)
    told: SessionProgress = field(default_factory=SessionProgress)


class Sockets:
    """What the endpoint of a process needs; made once by the site. ``kept_seconds``: for whoever may come back."""

    def __init__(
        self,
        *,
        serving: Serving,
        host_key: HostKey,
        feed: ProgressFeed | None = None,
        limits: SocketLimits | None = None,
        kept_seconds: float = 60.0,
    ) -> None:
        self.serving = serving
        self.host_key = host_key
        self.feed: ProgressFeed = feed or NoProgress()
        self.limits = limits or SocketLimits()
        self.conversations = Conversations(kept_seconds=kept_seconds)
        self.keys = KeptKeys(kept_seconds=kept_seconds)
        self._connections: dict[UUID, Connection] = {}
        self._by_address: Counter[str] = Counter()
        self._bound: dict[int, _Bound] = {}
        self._conversing: dict[UUID, Key] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._presence_due = 0.0

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, connection: Connection) -> bool:
        """Let a socket in, unless its address has too many already."""
        address = connection.caller.remote_address
        if self._by_address[address] >= self.limits.connections_per_address:
            return False
        self._by_address[address] += 1
        self._connections[connection.id] = connection
        self.serving.observer.sockets(len(self._connections))
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.ensure_future(self._look_after())
        return True

    def holds(self, connection: Connection) -> bool:
        """Whether the socket was let in."""
        return connection.id in self._connections

    async def leave(self, connection: Connection) -> None:
        """The socket is gone: the grace period of its sessions starts."""
        if self._connections.pop(connection.id, None) is None:
            return
        self.serving.observer.sockets(len(self._connections))
        address = connection.caller.remote_address
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        self._conversing.pop(connection.id, None)
        if not self._connections and self._keeper is not None:
            self._keeper.cancel()
        sessions_of = [pk for pk, bound in self._bound.items() if bound.named.pop(connection.id, None) is not None]
        for session_id in sessions_of:
            if not self._bound[session_id].named:
                del self._bound[session_id]
        if sessions_of:
            await in_database_thread(sessions.detach_socket)(connection.id)

    async def bind(self, connection: Connection, session_id: int, *, named: str) -> None:
        """Hold the session of that row open with this socket, and tell its client what becomes of it."""
        bound = self._bound.get(session_id)
        if bound is not None and connection.id in bound.named:
            bound.named[connection.id] = named
            return
        await in_database_thread(sessions.attach_socket)(session_id, connection_id=connection.id)
        known = SessionProgress()
        if session_id not in self._bound:
            # What was so before is no news.
            read = await in_database_thread(self.feed.read)([session_id])
            known = read.get(session_id, known)
        # Looked up after the last wait: the last socket of the session may have left meanwhile, and its entry with it.
        self._bound.setdefault(session_id, _Bound(told=known)).named[connection.id] = named

    def bound_sessions(self, connection: Connection) -> list[int]:
        """Row ids of the sessions that this socket holds open."""
        return sorted(pk for pk, bound in self._bound.items() if connection.id in bound.named)

    def converses(self, connection: Connection, key: Key) -> None:
        """The conversation of ``key`` is not forgotten while this socket is there."""
        self._conversing[connection.id] = key

    # The task -------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AFTER_SECONDS)
            for connection in list(self._connections.values()):
                if code := connection.overdue():
                    await self._drop(connection, code)
            for key in self._conversing.values():
                self.conversations.touch(key)
            if self._bound:
                try:
                    await self._ask_the_database()
                except DatabaseError as failure:
                    # Presence outlives a short outage, and news can wait.
                    logger.warning("sockets could not be looked after: %s", failure)

    async def _drop(self, connection: Connection, code: int) -> None:
        try:
            await connection.drop(code)
        except Exception:  # the named boundary of this task: one socket must not end the care of all others
            logger.exception("a WebSocket could not be closed")

    async def _ask_the_database(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._presence_due:
            self._presence_due = now + _PRESENCE_SECONDS
            pairs = [(pk, connection) for pk, bound in self._bound.items() for connection in bound.named]
            await in_database_thread(sessions.refresh_sockets)(pairs)
        read = await in_database_thread(self.feed.read)(list(self._bound))
        for session_id, state in read.items():
            if (bound := self._bound.get(session_id)) is not None:
                self._tell(bound, state)

    def _tell(self, bound: _Bound, state: SessionProgress) -> None:
        before, bound.told = bound.told, state
        if before == state:
            return
        for connection_id, name in bound.named.items():
            connection = self._connections.get(connection_id)
            for frame in progress.frames(before, state, session_id=name):
                if connection is not None:
                    connection.send_soon(answers.encode(frame))
