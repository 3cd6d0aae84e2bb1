"""HTTP to an inference server: questions with one JSON answer, and answers that stream.

Guarantees: neither the server's address nor the key appears in a message, for clients read them; nothing of
what the server says is repeated but short identifiers, for it may quote the prompt; redirects, proxies
of the environment and cookies are not followed; each request has a connection of its own. Does not know
what is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from typing import Any

import aiohttp

from jobs.inference.engine import EngineUnavailable, GenerationFailed
from jobs.inference.openai_http_upstream import Upstream

CONNECT_SECONDS = 5.0
QUESTION_SECONDS = 10.0
_LARGEST_REFUSAL = 64 * 1024
_LARGEST_ANSWER = 16 * 1024 * 1024
_IDENTIFIER = re.compile(r"[A-Za-z][\w.-]{0,63}")

Json = dict[str, Any]


class Refusal(Exception):
    """The server answered with another status than 200.

    The text holds those of its words that cannot be part of a prompt; ``error``, its own object, may
    quote one, and is for looking at, not for showing. ``retry_after`` is in seconds.
    """

    def __init__(self, *, status: int, error: Json, retry_after: int | None) -> None:
        words = (error.get(name) for name in ("type", "code", "param"))
        known = (word for word in words if isinstance(word, str) and _IDENTIFIER.fullmatch(word))
        super().__init__(", ".join((f"HTTP {status}", *known)))
        self.status = status
        self.error = error
        self.retry_after = retry_after


class BrokenOff(Exception):
    """An answer that had begun did not reach its end. The text says how."""


class Wire:
    """Connections to one server. Safe to share between threads."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._lock = threading.Lock()

    async def ask(self, method: str, path: str, body: Json | None = None, *, seconds: float = QUESTION_SECONDS) -> Any:
        """The JSON answer. Raises ``Refusal``, ``EngineUnavailable``; ``GenerationFailed`` if it is not JSON."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with await self._send(method, path, body, timeout) as response:
                await _check(response)
                return json.loads(await _beginning(response, _LARGEST_ANSWER))
        except (ValueError, RecursionError):
            raise GenerationFailed("The inference server did not answer with JSON.") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from error

    async def open(self, path: str, body: Json) -> Answer:
        """Begin an answer that streams. Raises like ``ask``."""
        silence = self.upstream.silence_seconds
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        try:
            response = await self._send("POST", path, body, timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from error
        try:
            await _check(response)
            if response.content_type != "text/event-stream":
                kind = _shown(response.content_type)
                raise GenerationFailed(f"The inference server answered with {kind}, not with text/event-stream.")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            response.close()
            raise _unreachable(error) from error
        except BaseException:
            response.close()
            raise
        return Answer(response, silence_seconds=silence)

    async def _send(
        self, method: str, path: str, body: Json | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        url = self.upstream.root + path
        return await self._session().request(method, url, json=body, timeout=timeout, allow_redirects=False)

    async def close(self) -> None:
        """Close the running event loop's connections; a later call opens new ones."""
        with self._lock:
            session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        with self._lock:
            session = self._sessions.get(loop)
            if session is None:
                for closed in [known for known in self._sessions if known.is_closed()]:
                    del self._sessions[closed]
                session = self._sessions[loop] = aiohttp.ClientSession(
                    # A kept connection may be closed by the server just when the next request is written to it.
                    connector=aiohttp.TCPConnector(limit=0, force_close=True),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity", **self.upstream.headers},
                    trust_env=False,
                )
            return session


class Answer:
    """A streaming answer. ``close`` ends it at once, also while ``read`` waits: the server sees its client go."""

    def __init__(self, response: aiohttp.ClientResponse, *, silence_seconds: float) -> None:
        self._response = response
        self._silence_seconds = silence_seconds
        self._unread = b""

    async def read(self) -> bytes:
        """All bytes that are there, at least one; none at the end. Raises ``BrokenOff``."""
        try:
            return await self._response.content.readany()
        except TimeoutError:
            raise BrokenOff(f"it said nothing for {self._silence_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if self._unread:
                unread, self._unread = self._unread, b""
                return unread
            raise BrokenOff(f"the connection ended ({type(error).__name__})") from None

    def stop(self) -> None:
        """``close``, but what has arrived can still be read."""
        try:
            self._unread = self._response.content.read_nowait()
        except (RuntimeError, aiohttp.ClientError, TimeoutError, OSError):
            # Somebody waits for more, so nothing is there; or the connection has ended already.
            self._unread = b""
        self.close()

    def close(self) -> None:
        """Drop the connection, unless the answer has been read to its end."""
        self._response.close()


def _unreachable(error: Exception) -> EngineUnavailable:
    if isinstance(error, TimeoutError):
        return EngineUnavailable("The inference server does not answer in time.")
    if isinstance(error, aiohttp.ClientConnectorError):
        # The error's own text holds the address.
        number = error.os_error.errno
        reason = os.strerror(number) if number is not None and number > 0 else type(error.os_error).__name__
        return EngineUnavailable(f"The inference server cannot be reached ({reason}).")
    return EngineUnavailable(f"The inference server closed the connection ({type(error).__name__}).")


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises ``Refusal`` for any status but 200."""
    if response.status == 200:
        return
    raw = await _beginning(response, _LARGEST_REFUSAL)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    document = document if isinstance(document, dict) else {}
    error = document.get("error", document)
    retry_after = response.headers.get("Retry-After", "")
    raise Refusal(
        status=response.status,
        error=error if isinstance(error, dict) else {"message": error},
        retry_after=int(retry_after) if re.fullmatch(r"[0-9]{1,6}", retry_after) else None,
    )


async def _beginning(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, or its first ``most`` bytes."""
    parts: list[bytes] = []
    room = most
    async for part in response.content.iter_any():
        parts.append(part[:room])
        room -= len(parts[-1])
        if not room:
            response.close()
            break
    return b"".join(parts)


def _shown(text: str) -> str:
    """Words of the machine or of a header, short and on one line."""
    return re.sub(r"[^\w .,/+;=-]", "?", text)[:80]
