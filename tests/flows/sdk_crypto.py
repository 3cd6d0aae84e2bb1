"""The client's side of an encrypted session, written from the network's rules with other libraries than the node's."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys import keys
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)


def derived_key(secret: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"").derive(secret)


def encrypt(key: bytes, plaintext: bytes, *, nonce: bytes, aad: bytes = b"") -> bytes:
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, aad, nonce, key)


def decrypt(key: bytes, payload: dict[str, Any]) -> bytes:
    parts = (bytes.fromhex(payload[name]) for name in ("ciphertextHex", "aadHex", "nonceHex"))
    return crypto_aead_xchacha20poly1305_ietf_decrypt(*parts, key)


@dataclass
class SdkClient:
    """One wallet. ``init`` makes a new session key every time, as the SDK does before every prompt."""

    host_public_key: bytes
    account: LocalAccount = field(default_factory=Account.create)
    key: bytes = b""
    messages: int = 0

    @property
    def address(self) -> str:
        return str(self.account.address).lower()

    def init(self, job: int | str | None, *, prefix: str = "", **fields: Any) -> dict[str, Any]:
        """An ``encrypted_session_init`` frame; ``prefix`` "0x" writes its hex as other clients do."""
        self.key, self.messages = os.urandom(32), 0
        inner = {
            "sessionKey": self.key.hex(),
            "jobId": str(job),
            "modelName": "scripted",
            "pricePerToken": 0,
            "recoveryPublicKey": "0x02" + "11" * 32,
        }
        payload = self.payload(json.dumps(inner).encode())
        for name in ("ephPubHex", "saltHex", "nonceHex", "ciphertextHex", "signatureHex"):
            payload[name] = prefix + payload[name]
        return {
            "type": "encrypted_session_init",
            "chain_id": 31337,
            "session_id": str(job),
            "job_id": str(job),
            "payload": payload,
            **fields,
        }

    def payload(self, plaintext: bytes, *, aad: bytes = b"") -> dict[str, Any]:
        ephemeral = ec.generate_private_key(ec.SECP256K1())
        public = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        host = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), self.host_public_key)
        key = derived_key(ephemeral.exchange(ec.ECDH(), host))
        nonce, salt = os.urandom(24), bytes(32)
        parts = [b"E2EEv1", public, self.host_public_key, salt, nonce, b"", *([aad] if aad else [])]
        signature = keys.PrivateKey(bytes(self.account.key)).sign_msg_hash(hashlib.sha256(b"|".join(parts)).digest())
        return {
            "ephPubHex": public.hex(),
            "saltHex": salt.hex(),
            "nonceHex": nonce.hex(),
            "ciphertextHex": encrypt(key, plaintext, nonce=nonce, aad=aad).hex(),
            "signatureHex": signature.to_bytes().hex(),
            "recid": signature.v,
            "alg": "secp256k1-ecdh(ephemeral→static)+hkdf(sha256)+xchacha20-poly1305",
            "info": "",
            "aadHex": aad.hex(),
        }

    def message(self, inner: Any, *, session: int | str, id: str = "m", **fields: Any) -> dict[str, Any]:
        """An ``encrypted_message`` frame."""
        aad, nonce = f"message_{self.messages}".encode(), os.urandom(24)
        self.messages += 1
        plaintext = inner if isinstance(inner, bytes) else json.dumps(inner).encode()
        payload = {
            "ciphertextHex": encrypt(self.key, plaintext, nonce=nonce, aad=aad).hex(),
            "nonceHex": nonce.hex(),
            "aadHex": aad.hex(),
        }
        return {"type": "encrypted_message", "session_id": str(session), "id": id, "payload": payload, **fields}

    def prompt(self, text: str, *, session: int | str, tokens: int = 10, **fields: Any) -> dict[str, Any]:
        """As ``sendPromptStreaming`` sends it."""
        inner = {"prompt": text, "model": "scripted", "max_tokens": tokens, "temperature": 0.7, "stream": True}
        return self.message(inner, session=session, **fields)

    def read(self, frames: list[dict[str, Any]]) -> str:
        """The answer's text. Each chunk is decoded alone and must name its own index."""
        pieces = []
        for index, frame in enumerate(frame for frame in frames if frame["type"] == "encrypted_chunk"):
            payload = frame["payload"]
            assert payload["index"] == index
            assert bytes.fromhex(payload["aadHex"]) == f"chunk_{index}".encode()
            pieces.append(decrypt(self.key, payload).decode())
        return "".join(pieces)

    def finish_reason(self, frames: list[dict[str, Any]]) -> str:
        [response] = [frame for frame in frames if frame["type"] == "encrypted_response"]
        assert bytes.fromhex(response["payload"]["aadHex"]) == b"encrypted_response_final"
        return decrypt(self.key, response["payload"]).decode()
