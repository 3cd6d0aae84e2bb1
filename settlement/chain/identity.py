"""The host's key as its identity: proofs to clients of who this host is, and its side of a key agreement.

Guarantees that nothing which could be a transaction, or any other statement to a contract, is signed: a
challenge is 32 bytes and hashed with SHA-256 before it is signed, which no chain does, and a statement is
text of this node's own making under the prefix of EIP-191. The key appears in no ``repr``, copy or error.
Needs neither network nor database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from coincurve import PrivateKey, PublicKey
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from settlement.chain.signer import KeyNotCopied, SigningRefused

CHALLENGE_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeSignature:
    """``signature`` is r and s (64 bytes, low s); ``recovery_id`` is 0 to 3."""

    signature: bytes
    recovery_id: int


class HostIdentity:
    """A host's key, to be recognised by and to agree on secrets with."""

    __slots__ = ("_agree", "_sign_digest", "_sign_text", "address", "public_key")

    def __init__(self, account: LocalAccount) -> None:
        key = PrivateKey(bytes(account.key))
        self.address = str(account.address).lower()
        self.public_key: bytes = key.public_key.format(compressed=True)
        # Methods and not the key: no attribute of this object holds it.
        self._agree: Callable[[PublicKey], PublicKey] = lambda other: other.multiply(key.secret)
        self._sign_digest: Callable[[bytes], bytes] = lambda digest: key.sign_recoverable(digest, hasher=None)
        self._sign_text: Callable[[Any], Any] = account.sign_message

    def __repr__(self) -> str:
        return f"HostIdentity({self.address})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise KeyNotCopied("an identity is neither copied nor stored: it holds a key")

    def shared_secret(self, other_public_key: bytes) -> bytes:
        """The X coordinate of the point that both keys agree on. Raises ``ValueError`` for what is no point."""
        return self._agree(PublicKey(other_public_key)).format(compressed=True)[1:]

    def sign_challenge(self, challenge: bytes) -> ChallengeSignature:
        """Sign the SHA-256 of 32 bytes that a client chose. Raises ``SigningRefused`` for another length."""
        if len(challenge) != CHALLENGE_BYTES:
            raise SigningRefused(f"a challenge has {CHALLENGE_BYTES} bytes, not {len(challenge)}")
        raw = self._sign_digest(hashlib.sha256(challenge).digest())
        return ChallengeSignature(signature=raw[:64], recovery_id=raw[64])

    def sign_statement(self, entries: Sequence[dict[str, Any]]) -> str:
        """Sign a JSON list with sorted keys and without spaces, by EIP-191; hex with 0x."""
        text = json.dumps(list(entries), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) == CHALLENGE_BYTES:
            # Contracts verify hashes under this very prefix; a list of this length is none of ours.
            raise SigningRefused("a statement of 32 bytes could be taken for a hash")
        return "0x" + bytes(self._sign_text(encode_defunct(text=text)).signature).hex()
