"""What the jobs app asks of the host's key: one side of a key agreement, and nothing else.

A port: settlement, which alone holds the key, implements it and the site hands it in. Nothing that it
gives away can be used to sign or to send anything.
"""

from __future__ import annotations

from typing import Protocol


class HostKeyMissing(Exception):
    """This node has no key, or cannot read it. Says why, never the key."""


class HostKey(Protocol):
    """The host's key pair, as far as encrypted sessions need it. Both methods may read a file the first time."""

    def public_key(self) -> bytes:
        """33 bytes, compressed, as clients read it in the host's registration. Raises ``HostKeyMissing``."""
        ...

    def shared_secret(self, ephemeral_public_key: bytes) -> bytes:
        """The X coordinate (32 bytes) that this key and a client's agree on.

        Raises ``HostKeyMissing``, and ``ValueError`` for what is no point of secp256k1.
        """
        ...
