"""The signer refuses what it must not sign, and never shows its key."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hexbytes import HexBytes

from settlement.chain import signer as signer_module
from settlement.chain.bindings import HostEarnings, JobMarketplace, NodeRegistry
from settlement.chain.bindings import TestUSDC as Usdc
from settlement.chain.contracts import Call
from settlement.chain.signer import (
    KeyUnusable,
    LocalSigner,
    SigningRefused,
    SigningRules,
    UnsignedTransaction,
    account_of_key,
    account_of_keystore,
    compressed_public_key,
    host_rules,
)

MARKETPLACE = JobMarketplace("0x" + "aB" * 20)
EARNINGS = HostEarnings("0x" + "e1" * 20)
REGISTRY = NodeRegistry("0x" + "dE" * 20)
USDC = Usdc("0x" + "c5" * 20)
SWEEP_TO = "0x" + "5e" * 20
STRANGER = "0x" + "99" * 20
GAS = 100_000
FEE = 10**9
ACCOUNT = Account.create()
KEY = bytes(ACCOUNT.key).hex()
RULES = host_rules(
    chain_id=31337,
    marketplace=MARKETPLACE.address,
    host_earnings=EARNINGS.address,
    node_registry=REGISTRY.address,
    usdc=USDC.address,
    sweep_to=SWEEP_TO,
    max_fee_per_gas=FEE,
    max_cost=10 * GAS * FEE,
    daily_cost=100 * GAS * FEE,
    max_stake=10**17,
)
REGISTRATION = {"metadata": "{}", "api_url": "u", "model_ids": [], "min_price_native": 1, "min_price_stable": 1}


def _transaction(call: Call[Any] | None = None, **fields: Any) -> UnsignedTransaction:
    made = UnsignedTransaction(
        chain_id=31337,
        nonce=3,
        to=call.to if call else str(ACCOUNT.address),
        data=call.data if call else b"",
        value=call.value if call else 0,
        gas_limit=GAS,
        max_fee_per_gas=FEE,
        max_priority_fee_per_gas=10**6,
    )
    return replace(made, **fields)


CLAIM = MARKETPLACE.submit_proof_of_work(job_id=1, tokens_claimed=100, proof=b"proof")


@pytest.fixture
def signer() -> LocalSigner:
    return LocalSigner(ACCOUNT, rules=RULES)


def test_a_signature_is_the_accounts_and_its_hash_is_known_at_once(signer: LocalSigner) -> None:
    signed = signer.sign(_transaction(CLAIM))
    assert Account.recover_transaction(HexBytes(signed.raw)) == ACCOUNT.address
    assert signer.sign(_transaction(CLAIM)) == signed
    assert len(signed.hash) == 32


@pytest.mark.parametrize(
    "allowed",
    [
        _transaction(CLAIM),
        _transaction(MARKETPLACE.complete_session_job(job_id=1, conversation_cid="cid")),
        _transaction(
            MARKETPLACE.complete_session_job_with_proof(
                job_id=1, tokens_claimed=7, proof=b"proof", conversation_cid="cid"
            )
        ),
        _transaction(MARKETPLACE.trigger_session_timeout(1)),
        _transaction(EARNINGS.withdraw(amount=1, token=USDC.address)),
        _transaction(EARNINGS.withdraw_all(USDC.address)),
        _transaction(EARNINGS.withdraw_multiple([USDC.address])),
        _transaction(REGISTRY.register_node(**REGISTRATION, value=10**17)),
        _transaction(REGISTRY.unregister_node()),
        _transaction(USDC.transfer(to=SWEEP_TO, value=10**12)),
        _transaction(to=SWEEP_TO, value=10**20),
        _transaction(),
    ],
)
def test_what_a_hosts_work_consists_of_is_signed(signer: LocalSigner, allowed: UnsignedTransaction) -> None:
    assert Account.recover_transaction(HexBytes(signer.sign(allowed).raw)) == ACCOUNT.address


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (_transaction(CLAIM, chain_id=1), "chain 1 is not the configured chain 31337 .CHAIN_ID"),
        (_transaction(CLAIM, to=STRANGER), "none of this node's contracts .CONTRACT_JOB_MARKETPLACE"),
        (_transaction(CLAIM, to=EARNINGS.address), "a host calls no function 0x"),
        (_transaction(CLAIM, data=b"\x01"), "a host calls no function 0x01"),
        (_transaction(MARKETPLACE.withdraw_treasury(USDC.address)), "a host calls no function"),
        (_transaction(MARKETPLACE.transfer_ownership(USDC.address)), "a host calls no function"),
        (_transaction(CLAIM, value=1), "1 wei with a call of .* is above the limit of 0"),
        (_transaction(REGISTRY.register_node(**REGISTRATION, value=10**17 + 1)), "above the limit of 1000"),
        (_transaction(REGISTRY.unregister_node(), value=1), "above the limit of 0"),
        (_transaction(CLAIM, max_fee_per_gas=FEE + 1), "FABSTIR_MAX_FEE_PER_GAS_WEI"),
        (_transaction(CLAIM, gas_limit=2**24 + 1), "above the chain's limit of 16777216"),
        (_transaction(CLAIM, gas_limit=10 * GAS + 1), "FABSTIR_MAX_TRANSACTION_COST_WEI"),
        (_transaction(value=1), "FABSTIR_SWEEP_TO"),
        (_transaction(to=STRANGER), "FABSTIR_SWEEP_TO"),
        (_transaction(data=b"\x00"), "none of this node's contracts"),
        (_transaction(to=MARKETPLACE.address, value=5), "5 wei to .* sweep address only"),
        (_transaction(to=SWEEP_TO, data=b"\x01\x02\x03\x04"), "none of this node's contracts"),
        (_transaction(USDC.transfer(to=USDC.address, value=1)), "FABSTIR_SWEEP_TO"),
        (
            _transaction(USDC.transfer(to=SWEEP_TO, value=1), data=Usdc("0x" + "c5" * 20).decimals().data),
            "function",
        ),
        (_transaction(USDC.approve(spender=SWEEP_TO, value=1)), "a host calls no function"),
        (_transaction(data=USDC.transfer(to=SWEEP_TO, value=1).data[:30], to=USDC.address), "unreadable address"),
    ],
)
def test_nothing_is_signed_beyond_the_limits(signer: LocalSigner, refused: UnsignedTransaction, words: str) -> None:
    with pytest.raises(SigningRefused, match=words) as refusal:
        signer.sign(refused)
    assert KEY not in str(refusal.value)


def test_without_a_sweep_address_no_money_leaves() -> None:
    rules = host_rules(
        chain_id=31337, marketplace=MARKETPLACE.address, usdc=USDC.address, max_fee_per_gas=FEE, max_cost=10**18,
        daily_cost=10**18,
    )  # fmt: skip
    signer = LocalSigner(ACCOUNT, rules=rules)
    for transaction in (_transaction(to=SWEEP_TO, value=1), _transaction(USDC.transfer(to=SWEEP_TO, value=1))):
        with pytest.raises(SigningRefused):
            signer.sign(transaction)


def _daily(now: Callable[[], float]) -> LocalSigner:
    rules: SigningRules = replace(RULES, daily_cost=3 * GAS * FEE)
    return LocalSigner(ACCOUNT, rules=rules, clock=now)


def test_a_days_signatures_cost_no_more_than_the_signer_allows() -> None:
    now = [0.0]
    signer = _daily(lambda: now[0])
    for nonce in range(3):
        signer.sign(_transaction(CLAIM, nonce=nonce))
    with pytest.raises(SigningRefused, match="FABSTIR_DAILY_GAS_BUDGET_WEI"):
        signer.sign(_transaction(CLAIM, nonce=3))
    now[0] = 24 * 3600 + 1.0
    signer.sign(_transaction(CLAIM, nonce=3))
    assert signer._day._total == GAS * FEE


def test_a_nonce_signed_again_counts_once_with_its_dearest_signature() -> None:
    signer = _daily(lambda: 0.0)
    for fee in (FEE // 2, FEE, FEE // 4):
        for nonce in range(3):
            signer.sign(_transaction(CLAIM, nonce=nonce, max_fee_per_gas=fee, max_priority_fee_per_gas=1))
    assert signer._day._total == 3 * GAS * FEE


def test_a_busy_day_is_remembered_by_the_minute_and_forgotten_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer_module, "_NONCES_KNOWN", 2)
    now = [30.0]
    rules = replace(RULES, daily_cost=8 * GAS * FEE)
    signer = LocalSigner(ACCOUNT, rules=rules, clock=lambda: now[0])
    for nonce in range(8):
        now[0] = 30.0 + 20 * nonce
        signer.sign(_transaction(CLAIM, nonce=nonce))
    day = signer._day
    assert (len(day._by_nonce), dict(day._by_minute)) == (2, {0: 2 * GAS * FEE, 1: 3 * GAS * FEE, 2: GAS * FEE})
    with pytest.raises(SigningRefused, match="24 hours"):
        signer.sign(_transaction(CLAIM, nonce=8))
    # The first minute is over for 24 hours: its two signatures count no more.
    now[0] = 24 * 3600 + 60.0
    for nonce in (8, 9):
        signer.sign(_transaction(CLAIM, nonce=nonce))
    with pytest.raises(SigningRefused, match="24 hours"):
        signer.sign(_transaction(CLAIM, nonce=10))
    now[0] = 3 * 24 * 3600
    signer.sign(_transaction(CLAIM, nonce=11))
    assert (day._total, dict(day._by_minute)) == (GAS * FEE, {})


def test_the_key_is_in_no_representation_of_the_signer(signer: LocalSigner) -> None:
    attributes = {name: getattr(signer, name) for name in LocalSigner.__slots__}
    for shown in (repr(signer), str(signer), f"{signer}", repr([signer]), repr(attributes), repr(signer.rules)):
        assert KEY not in shown.lower()
    assert signer.address in repr(signer)
    assert not hasattr(signer, "__dict__")


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_signer_is_neither_copied_nor_stored(signer: LocalSigner, copying: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="holds a key"):
        copying(signer)


def test_the_key_is_in_no_log_line_of_an_unforeseen_error(
    signer: LocalSigner, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        signer.sign(_transaction(CLAIM, nonce=-1))
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


def _keystore(folder: Path, password: str = "correct") -> tuple[Path, Path]:
    keystore, file = folder / "keystore.json", folder / "password"
    keystore.write_text(json.dumps(Account.encrypt(KEY, "correct", kdf="pbkdf2", iterations=2)))
    file.write_text(password + "\n")
    return keystore, file


def test_a_keystore_opens_with_its_password_only(tmp_path: Path) -> None:
    keystore, password = _keystore(tmp_path)
    assert account_of_keystore(keystore, password_file=password).address == ACCOUNT.address
    password.write_text("wrong")
    with pytest.raises(KeyUnusable, match=r"password in .*password") as refused:
        account_of_keystore(keystore, password_file=password)
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_named(tmp_path: Path, missing: int) -> None:
    files = _keystore(tmp_path)
    files[missing].unlink()
    with pytest.raises(KeyUnusable, match="No such file"):
        account_of_keystore(files[0], password_file=files[1])


def test_a_key_that_every_user_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore, password = _keystore(tmp_path)
    for path in (keystore, password):
        path.chmod(0o644)
    tmp_path.chmod(0o700)
    assert account_of_keystore(keystore, password_file=password).address == ACCOUNT.address
    monkeypatch.setattr(Path, "parents", property(lambda path: [Path("/")]))  # as if no folder kept others out
    with pytest.raises(KeyUnusable, match="chmod 600"):
        account_of_keystore(keystore, password_file=password)
    password.chmod(0o640)
    assert account_of_keystore(keystore, password_file=password).address == ACCOUNT.address


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"crypto": {}}', "5", "null"])
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
