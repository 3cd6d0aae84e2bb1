"""The way to the broker: kombu's Redis transport, whose channels say that their connection is lost.

Guarantees that a worker which loses the broker with messages in hand goes on once the broker is back. A
message that was in hand may be lost or come again; the tasks allow for both.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as ConnectionLost


class Channel(redis.Channel):
    """A channel outlives its connection while messages that came by it are acknowledged or put back.

    kombu 5.7 then raises AttributeError, which nothing expects, and the worker ends.
    """

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection is None or self.connection.client is None:
            raise ConnectionLost("the connection to the broker that this message came by is lost")
        # A private method of kombu's, which its stubs leave out.
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[misc]
        return parameters


class Transport(redis.Transport):
    Channel = Channel


def register() -> None:
    """Have kombu use this transport for the URLs of a Redis."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
