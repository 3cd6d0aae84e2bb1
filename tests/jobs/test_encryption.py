"""Encrypted sessions against a client written from the network's rules with other cryptographic libraries."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys import keys
from eth_keys.constants import SECPK1_N

from jobs import encryption
from jobs.encryption import OpenedInit, SessionKey
from jobs.protocol import RequestError
from settlement.chain.identity import HostIdentity
from settlement.chain.signer import SigningRefused
from tests.flows.sdk_crypto import SdkClient, decrypt, derived_key

HOST = Account.create()


class Key:
    """The host's key as the site hands it in."""

    identity = HostIdentity(HOST)

    def public_key(self) -> bytes:
        return self.identity.public_key

    def shared_secret(self, ephemeral_public_key: bytes) -> bytes:
        return self.identity.shared_secret(ephemeral_public_key)


@pytest.fixture
def client() -> SdkClient:
    return SdkClient(Key.identity.public_key)


def opened(frame: dict[str, Any]) -> OpenedInit:
    return encryption.open_init(frame["payload"], host_key=Key())


def refusal_of(payload: Any, *, key: SessionKey | None = None) -> str:
    with pytest.raises(RequestError) as refused:
        if key is None:
            encryption.open_init(payload, host_key=Key())
        else:
            key.open_message(payload)
    return refused.value.code


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_an_init_of_the_client_opens_and_names_its_wallet(client: SdkClient, prefix: str) -> None:
    init = opened(client.init(163, prefix=prefix))
    assert init.client_address == client.address
    assert init.values["jobId"] == "163"
    assert init.key == SessionKey(client.key)
    assert "sessionKey" not in init.values


def test_an_init_with_additional_data_is_signed_with_them(client: SdkClient) -> None:
    payload = client.payload(b'{"sessionKey": "%s"}' % (b"ab" * 32), aad=b"more")
    assert encryption.open_init(payload, host_key=Key()).client_address == client.address


def test_messages_and_chunks_go_both_ways(client: SdkClient) -> None:
    key = opened(client.init(1)).key
    message = client.message({"prompt": "Zürich 東京"}, session=1)
    assert key.open_message(message["payload"]) == {"prompt": "Zürich 東京"}
    chunk = key.seal_chunk("日本 👩‍👩‍👧", index=7)
    assert decrypt(client.key, chunk).decode() == "日本 👩‍👩‍👧"
    assert (bytes.fromhex(chunk["aadHex"]), chunk["index"]) == (b"chunk_7", 7)
    assert decrypt(client.key, key.seal_final("stop")) == b"stop"
    assert key.seal_chunk("x", index=0) != key.seal_chunk("x", index=0)


def test_the_shared_secret_is_the_x_coordinate_and_the_derivation_has_no_salt() -> None:
    # RFC 5869 with neither salt nor info, computed with another library.
    assert encryption._derived(b"\x0b" * 32) == derived_key(b"\x0b" * 32)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ephPubHex": None}, "INVALID_PAYLOAD"),
        ({"aadHex": None}, "INVALID_PAYLOAD"),
        ({"nonceHex": "zz" * 24}, "INVALID_HEX_ENCODING"),
        ({"ciphertextHex": "abc"}, "INVALID_HEX_ENCODING"),
        ({"nonceHex": "00" * 12}, "INVALID_NONCE_SIZE"),
        ({"nonceHex": "00" * 24}, "DECRYPTION_FAILED"),
        ({"ciphertextHex": "00" * 40}, "DECRYPTION_FAILED"),
        ({"ciphertextHex": ""}, "DECRYPTION_FAILED"),
        ({"ephPubHex": "02" + "ff" * 32}, "INVALID_PAYLOAD"),
        ({"ephPubHex": "02"}, "INVALID_PAYLOAD"),
        ({"signatureHex": "00" * 64}, "INVALID_PAYLOAD"),
        ({"signatureHex": "00" * 65}, "INVALID_PAYLOAD"),
        ({"signatureHex": "11" * 64 + "09"}, "INVALID_PAYLOAD"),
        ({"info": "00"}, "INVALID_PAYLOAD"),
        ({"info": "no hex"}, "INVALID_HEX_ENCODING"),
        ({"saltHex": 5}, "INVALID_HEX_ENCODING"),
    ],
)
def test_a_faulty_init_is_refused_with_the_code_that_names_its_fault(
    client: SdkClient, change: dict[str, Any], code: str
) -> None:
    assert refusal_of({**client.init(1)["payload"], **change}) == code


def test_a_payload_that_is_none_or_no_object_is_named(client: SdkClient) -> None:
    assert refusal_of(None) == "MISSING_PAYLOAD"
    assert refusal_of("x") == "INVALID_PAYLOAD"
    assert refusal_of(client.payload(b"\xff\xfe")) == "INVALID_UTF8"
    assert refusal_of(client.payload(b"[]")) == "INVALID_PAYLOAD"
    assert refusal_of(client.payload(b"{}")) == "INVALID_PAYLOAD"
    assert refusal_of(client.payload(b'{"sessionKey": "abcd"}')) == "INVALID_PAYLOAD"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aadHex": None}, "MISSING_PAYLOAD_FIELDS"),
        ({"nonceHex": "0"}, "INVALID_HEX_ENCODING"),
        ({"nonceHex": ""}, "INVALID_NONCE_SIZE"),
        ({"aadHex": "00"}, "DECRYPTION_FAILED"),
    ],
)
def test_a_faulty_message_is_refused_with_the_code_that_names_its_fault(
    client: SdkClient, change: dict[str, Any], code: str
) -> None:
    key = opened(client.init(1)).key
    assert refusal_of({**client.message({}, session=1)["payload"], **change}, key=key) == code


def test_a_message_of_another_session_cannot_be_opened(client: SdkClient) -> None:
    old = opened(client.init(1)).key
    client.init(1)
    assert refusal_of(client.message({}, session=1)["payload"], key=old) == "DECRYPTION_FAILED"
    assert refusal_of(client.message(b"\xff", session=1)["payload"], key=SessionKey(client.key)) == "INVALID_UTF8"


def test_another_clients_signature_cannot_be_put_under_an_init(client: SdkClient) -> None:
    victim = SdkClient(Key.identity.public_key)
    stolen = victim.init(1)["payload"]["signatureHex"]
    init = encryption.open_init({**client.init(1)["payload"], "signatureHex": stolen}, host_key=Key())
    assert init.client_address not in (victim.address, client.address)


def test_an_init_for_another_host_names_nobody_here(client: SdkClient) -> None:
    other = HostIdentity(Account.create())
    frame = SdkClient(other.public_key, account=client.account).init(1)
    assert refusal_of(frame["payload"]) == "DECRYPTION_FAILED"


def test_keys_are_neither_shown_nor_copied() -> None:
    key = SessionKey(b"k" * 32)
    for held in (key, Key.identity):
        assert HOST.key.hex() not in repr(held)
        assert "k" * 8 not in repr(held)
        with pytest.raises(TypeError):
            copy.copy(held)
        with pytest.raises(TypeError):
            pickle.dumps(held)
    slots = [getattr(Key.identity, name) for name in HostIdentity.__slots__]
    assert not any(bytes(HOST.key) == held for held in slots)


def test_a_signed_challenge_recovers_to_the_host_and_is_of_the_hash_of_32_bytes_only() -> None:
    challenge = bytes(range(32))
    signed = Key.identity.sign_challenge(challenge)
    assert len(signed.signature) == 64
    assert signed.recovery_id in range(4)
    recoverable = keys.Signature(signed.signature + bytes((signed.recovery_id,)))
    assert recoverable.recover_public_key_from_msg(b"").to_checksum_address() != HOST.address
    digest = hashlib.sha256(challenge).digest()
    assert recoverable.recover_public_key_from_msg_hash(digest).to_checksum_address() == HOST.address
    assert int.from_bytes(signed.signature[32:]) <= SECPK1_N // 2
    for length in (0, 31, 33, 64):
        with pytest.raises(SigningRefused):
            Key.identity.sign_challenge(bytes(length))


def test_a_statement_is_signed_as_sorted_json_and_never_as_32_bytes() -> None:
    signature = Key.identity.sign_statement([{"b": 1, "a": "é"}])
    text = encode_defunct(text='[{"a":"é","b":1}]')
    assert Account.recover_message(text, signature=signature) == HOST.address
    with pytest.raises(SigningRefused):
        Key.identity.sign_statement([{"a": "x" * (32 - len('[{"a":""}]'))}])
