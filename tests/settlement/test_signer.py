"""The signer refuses what it must not sign, and never shows its key."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from hexbytes import HexBytes

from settlement.chain.signer import (
    KeyUnusable,
    LocalSigner,
    SigningRefused,
    UnsignedTransaction,
    account_of_key,
    account_of_keystore,
    compressed_public_key,
)

CONTRACT = "0x" + "aB" * 20
TRANSACTION = UnsignedTransaction(
    chain_id=31337,
    nonce=3,
    to=CONTRACT,
    data=b"\x01\x02",
    value=0,
    gas_limit=100_000,
    max_fee_per_gas=10**9,
    max_priority_fee_per_gas=10**6,
)
ACCOUNT = Account.create()
KEY = bytes(ACCOUNT.key).hex()


@pytest.fixture
def signer() -> LocalSigner:
    return LocalSigner(ACCOUNT, chain_id=31337, contracts=[CONTRACT], max_fee_per_gas=10**9)


def test_a_signature_is_the_accounts_and_its_hash_is_known_at_once(signer: LocalSigner) -> None:
    signed = signer.sign(TRANSACTION)
    assert Account.recover_transaction(HexBytes(signed.raw)) == ACCOUNT.address
    assert signer.sign(TRANSACTION) == signed
    assert len(signed.hash) == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain_id": 1}, "chain 1 is not the configured chain 31337"),
        ({"to": "0x" + "cd" * 20}, "none of this node's contracts"),
        ({"max_fee_per_gas": 10**9 + 1}, "FABSTIR_MAX_FEE_PER_GAS_WEI"),
    ],
)
def test_nothing_is_signed_beyond_the_limits(signer: LocalSigner, change: dict[str, object], words: str) -> None:
    with pytest.raises(SigningRefused, match=words) as refused:
        signer.sign(replace(TRANSACTION, **change))
    assert KEY not in str(refused.value)


def test_the_key_is_in_no_representation_of_the_signer(signer: LocalSigner) -> None:
    for shown in (repr(signer), str(signer), f"{signer}", repr([signer])):
        assert KEY not in shown.lower()
        assert signer.address in shown


def test_the_key_is_in_no_log_line_of_an_unforeseen_error(
    signer: LocalSigner, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        signer.sign(replace(TRANSACTION, nonce=-1))
    except Exception:
        logging.getLogger("tests").exception("unforeseen: %r", signer)
    assert "unforeseen" in caplog.text
    assert KEY not in caplog.text.lower()


@pytest.mark.parametrize("key", ["0" * 64, "f" * 64, "not a key", "0x12"])
def test_an_unusable_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(KeyUnusable) as refused:
        account_of_key(key)
    assert key not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_keystore_opens_with_its_password_only(tmp_path: Path) -> None:
    keystore, password = tmp_path / "keystore.json", tmp_path / "password"
    keystore.write_text(json.dumps(Account.encrypt(KEY, "correct", kdf="pbkdf2", iterations=2)))
    password.write_text("correct\n")
    assert account_of_keystore(keystore, password_file=password).address == ACCOUNT.address
    password.write_text("wrong")
    with pytest.raises(KeyUnusable, match=r"password in .*password") as refused:
        account_of_keystore(keystore, password_file=password)
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"crypto": {}}'])
def test_a_damaged_keystore_names_its_file(tmp_path: Path, content: str) -> None:
    keystore, password = tmp_path / "keystore.json", tmp_path / "password"
    keystore.write_text(content)
    password.write_text("any")
    with pytest.raises(KeyUnusable, match=r"keystore\.json"):
        account_of_keystore(keystore, password_file=password)


def test_the_public_key_is_compressed_and_belongs_to_the_account() -> None:
    public_key = compressed_public_key(account_of_key(KEY))
    assert public_key[:4] in ("0x02", "0x03")
    assert len(public_key) == 68
