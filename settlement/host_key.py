"""The host's key for the jobs app (implements its ``HostKey``), and the identity behind it.

Guarantees that the configured key is read once and that a node without one says so at every call.
"""

from __future__ import annotations

import threading

from django.conf import settings

from jobs.host_key import HostKeyMissing
from settlement.chain.identity import HostIdentity
from settlement.chain.signer import KeyUnusable
from settlement.host_chain import host_account


class ConfiguredHostKey:
    """The key that this node's environment names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: tuple[object, HostIdentity] | None = None

    def identity(self) -> HostIdentity:
        """Who this host is. Raises ``HostKeyMissing``."""
        with self._lock:
            environment = settings.ENVIRONMENT
            if self._read is None or self._read[0] is not environment:
                self._read = (environment, _identity())
            return self._read[1]

    def public_key(self) -> bytes:
        """See ``HostKey.public_key``."""
        return self.identity().public_key

    def shared_secret(self, ephemeral_public_key: bytes) -> bytes:
        """See ``HostKey.shared_secret``."""
        return self.identity().shared_secret(ephemeral_public_key)


HOST_KEY = ConfiguredHostKey()


def _identity() -> HostIdentity:
    try:
        account = host_account()
    except KeyUnusable as error:
        raise HostKeyMissing(str(error)) from error
    if account is None:
        raise HostKeyMissing("This node has no key.")
    return HostIdentity(account)
