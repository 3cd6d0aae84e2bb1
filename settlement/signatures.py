"""Whose signature it is, for the jobs app (implements its ``SignatureCheck``).

Recovers secp256k1 signers from 65-byte signatures. Asks no chain, so wallets that are contracts (ERC-1271)
are nobody here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eth_account.messages import SignableMessage, encode_defunct, encode_typed_data
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature as UnrecoverableSignature
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from jobs.session_authorization import BadSignature, Recovered

_SIGNATURE_BYTES = 65
# Wallets write the recovery id as 27 or 28, libraries as 0 or 1.
_RECOVERY_IDS = {0: 0, 1: 1, 27: 0, 28: 1}


class RecoveredSignatures:
    """Signatures of externally owned accounts."""

    def of_text(self, text: str, *, signature: str) -> Recovered:
        """EIP-191 ``personal_sign``. Raises ``BadSignature``."""
        return _recovered(_hash_of(encode_defunct(text=text)), signature)

    def of_typed_data(self, data: Mapping[str, Any], *, signature: str) -> Recovered:
        """EIP-712. Raises ``BadSignature``."""
        return _recovered(_hash_of(encode_typed_data(full_message=dict(data))), signature)

    def of_plain_hash(self, text: str, *, signature: str) -> Recovered:
        """Keccak-256 of the text alone. Raises ``BadSignature``."""
        return _recovered(keccak(text=text), signature)


def _hash_of(message: SignableMessage) -> bytes:
    return keccak(b"\x19" + message.version + message.header + message.body)


def _recovered(message_hash: bytes, signature: str) -> Recovered:
    try:
        raw = bytes.fromhex(signature.removeprefix("0x"))
    except ValueError:
        raise BadSignature("it is not hex.") from None
    if len(raw) != _SIGNATURE_BYTES or raw[-1] not in _RECOVERY_IDS:
        raise BadSignature("it must be 65 bytes, the last of them 0, 1, 27 or 28.")
    standard = raw[:-1] + bytes([_RECOVERY_IDS[raw[-1]]])
    try:
        signer = Signature(standard).recover_public_key_from_msg_hash(message_hash)
    except (UnrecoverableSignature, ValidationError):
        raise BadSignature("no key can have made it.") from None
    return Recovered(signer=signer.to_address().lower(), message_hash="0x" + message_hash.hex())
