"""Encrypted sessions as the network's clients make them: the cryptography, and which error names which fault.

A client's ``encrypted_session_init`` carries a session key, encrypted to the host's public key by an
ephemeral one (secp256k1 ECDH, HKDF-SHA256 without salt and info, XChaCha20-Poly1305) and signed with the
client's own; every later message and chunk is encrypted with the session key. Guarantees that a session
key is in memory only and in no ``repr``; that an opened init was made by whoever holds the key of the
address it names, for this host; and that what was tampered with is refused. Does not know sockets or jobs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from coincurve import PublicKey
from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Hash import SHA256, keccak
from Crypto.Protocol.KDF import HKDF

from jobs.host_key import HostKey
from jobs.protocol import RequestError
from jobs.serializers import parse_json_object

NONCE_BYTES = 24
KEY_BYTES = 32
_TAG_BYTES = 16
_SIGNATURE_BYTES = 65
_EPHEMERAL_KEY_BYTES = (33, 65)
_NO_SALT = bytes(32)
_FINAL_AAD = b"encrypted_response_final"
_INIT_FIELDS = ("ephPubHex", "ciphertextHex", "signatureHex", "nonceHex", "aadHex")
_MESSAGE_FIELDS = ("ciphertextHex", "nonceHex", "aadHex")
_HEX = re.compile(r"(?:0[xX])?((?:[0-9a-fA-F]{2})*)")


def refused(code: str, message: str) -> RequestError:
    """A refusal with one of the codes that clients of encrypted sessions know."""
    return RequestError(code=code, message=message, status=400)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedInit:
    """What an ``encrypted_session_init`` held, and the address (lower case) of the key that signed it."""

    key: SessionKey
    client_address: str
    values: Mapping[str, Any] = field(repr=False)


class SessionKey:
    """The key of one encrypted session. Neither shown nor copied nor stored."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "SessionKey(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a session key is neither copied nor stored")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionKey) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def open_message(self, payload: object) -> dict[str, Any]:
        """The JSON object inside an ``encrypted_message``. Raises ``RequestError``."""
        sealed = _fields(payload, _MESSAGE_FIELDS, code="MISSING_PAYLOAD_FIELDS")
        return _json(
            _decrypt(self._key, nonce=sealed["nonceHex"], aad=sealed["aadHex"], ciphertext=sealed["ciphertextHex"])
        )

    def seal_chunk(self, text: str, *, index: int) -> dict[str, Any]:
        """The payload of the answer's chunk number ``index``."""
        return {**self._seal(text.encode(), aad=b"chunk_%d" % index), "index": index}

    def seal_final(self, finish_reason: str) -> dict[str, Any]:
        """The payload of ``encrypted_response``: why the answer ended."""
        return self._seal(finish_reason.encode(), aad=_FINAL_AAD)

    def _seal(self, plaintext: bytes, *, aad: bytes) -> dict[str, Any]:
        nonce = os.urandom(NONCE_BYTES)
        cipher = ChaCha20_Poly1305.new(key=self._key, nonce=nonce)
        cipher.update(aad)
        ciphertext, tag = cipher.encrypt_and_digest(plaintext)
        return {"ciphertextHex": (ciphertext + tag).hex(), "nonceHex": nonce.hex(), "aadHex": aad.hex()}


def open_init(payload: object, *, host_key: HostKey) -> OpenedInit:
    """Open an ``encrypted_session_init``'s payload. Raises ``RequestError`` and ``HostKeyMissing``."""
    sealed = _fields(payload, _INIT_FIELDS, code="INVALID_PAYLOAD")
    assert isinstance(payload, Mapping)  # noqa: S101 - or there would have been no fields
    if _bytes_of(payload.get("info") or "", "info"):
        raise refused("INVALID_PAYLOAD", "info must be empty: the host derives its key without one.")
    salt = _bytes_of(payload.get("saltHex") or _NO_SALT.hex(), "saltHex")
    ephemeral = _compressed(sealed["ephPubHex"])
    address = _signer(sealed, ephemeral=ephemeral, host=host_key.public_key(), salt=salt)
    try:
        secret = host_key.shared_secret(ephemeral)
    except ValueError as error:
        raise refused("INVALID_PAYLOAD", "ephPubHex is no public key of secp256k1.") from error
    values = _json(
        _decrypt(_derived(secret), nonce=sealed["nonceHex"], aad=sealed["aadHex"], ciphertext=sealed["ciphertextHex"])
    )
    key = values.pop("sessionKey", None)
    key_bytes = _bytes_of(key, "sessionKey") if isinstance(key, str) else b""
    if len(key_bytes) != KEY_BYTES:
        raise refused("INVALID_PAYLOAD", f"sessionKey must be {KEY_BYTES} bytes in hex.")
    return OpenedInit(key=SessionKey(key_bytes), client_address=address, values=values)


def _fields(payload: object, names: tuple[str, ...], *, code: str) -> dict[str, bytes]:
    if payload is None:
        raise refused("MISSING_PAYLOAD", "The message has no payload. Send the encrypted content as payload.")
    if not isinstance(payload, Mapping):
        raise refused("INVALID_PAYLOAD", "payload must be an object.")
    missing = [name for name in names if not isinstance(payload.get(name), str)]
    if missing:
        listed = ", ".join(names)
        raise refused(code, f"Missing required fields in payload: {', '.join(missing)}. Needed as hex: {listed}.")
    found = {name: _bytes_of(payload[name], name) for name in names}
    if len(found["nonceHex"]) != NONCE_BYTES:
        raise refused("INVALID_NONCE_SIZE", f"nonceHex must be {NONCE_BYTES} bytes, got {len(found['nonceHex'])}.")
    return found


def _bytes_of(text: object, name: str) -> bytes:
    digits = _HEX.fullmatch(text) if isinstance(text, str) else None
    if digits is None:
        raise refused("INVALID_HEX_ENCODING", f"{name} must be hex, with or without 0x.")
    return bytes.fromhex(digits[1])


def _compressed(key: bytes) -> bytes:
    if len(key) not in _EPHEMERAL_KEY_BYTES:
        raise refused("INVALID_PAYLOAD", f"ephPubHex must be a public key of 33 bytes, got {len(key)}.")
    try:
        return PublicKey(key).format(compressed=True)
    except ValueError as error:
        raise refused("INVALID_PAYLOAD", "ephPubHex is no public key of secp256k1.") from error


def _signer(sealed: Mapping[str, bytes], *, ephemeral: bytes, host: bytes, salt: bytes) -> str:
    """The address whose key signed this init for this host."""
    signature = sealed["signatureHex"]
    if len(signature) != _SIGNATURE_BYTES:
        raise refused("INVALID_PAYLOAD", f"signatureHex must be {_SIGNATURE_BYTES} bytes: r, s and the recovery id.")
    recovery_id = signature[64] - 27 if signature[64] >= 27 else signature[64]
    parts = [b"E2EEv1", ephemeral, host, salt, sealed["nonceHex"], b""]
    if sealed["aadHex"]:
        parts.append(sealed["aadHex"])
    digest = hashlib.sha256(b"|".join(parts)).digest()
    try:
        recoverable = signature[:64] + bytes((recovery_id,))
        public = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except ValueError as error:
        raise refused("INVALID_PAYLOAD", "signatureHex is no signature of secp256k1.") from error
    return address_of(public.format(compressed=False))


def address_of(public_key: bytes) -> str:
    """The chain address, lower case, of an uncompressed public key (65 bytes)."""
    digest = keccak.new(digest_bits=256, data=public_key[1:]).digest()
    return "0x" + digest[-20:].hex()


def _derived(secret: bytes) -> bytes:
    key = HKDF(secret, KEY_BYTES, salt=_NO_SALT, hashmod=SHA256, context=b"")
    assert isinstance(key, bytes)  # noqa: S101 - one key was asked for
    return key


def _decrypt(key: bytes, *, nonce: bytes, aad: bytes, ciphertext: bytes) -> bytes:
    if len(ciphertext) < _TAG_BYTES:
        raise refused("DECRYPTION_FAILED", f"ciphertextHex must hold at least a tag of {_TAG_BYTES} bytes.")
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(aad)
    try:
        return cipher.decrypt_and_verify(ciphertext[:-_TAG_BYTES], ciphertext[-_TAG_BYTES:])
    except ValueError:
        raise refused(
            "DECRYPTION_FAILED", "The content cannot be decrypted: another key, or it was changed on its way."
        ) from None


def _json(plaintext: bytes) -> dict[str, Any]:
    try:
        text = plaintext.decode()
    except UnicodeDecodeError:
        raise refused("INVALID_UTF8", "The decrypted content is not UTF-8.") from None
    try:
        return parse_json_object(text)
    except RequestError:
        # The cause would quote what was encrypted.
        raise refused("INVALID_PAYLOAD", "The decrypted content is not a JSON object.") from None
