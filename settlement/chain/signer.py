"""The signer: holds the host's key and signs what it is allowed to sign.

Guarantees that nothing is signed for another chain, for an address that is not one of the node's
contracts, or above the fee limit, and that the key never appears in ``repr``, errors or logs.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address


class SigningRefused(Exception):
    """The transaction is not one that this key may sign. Says which limit it breaks."""


class KeyUnusable(Exception):
    """The host's key cannot be read. Says which file and why, never the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedTransaction:
    """What to sign. ``value`` and fees in wei."""

    chain_id: int
    nonce: int
    to: str
    data: bytes
    value: int
    gas_limit: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """Raw bytes for a node, and the hash the chain will know them by."""

    raw: bytes
    hash: bytes


class Signer(Protocol):
    """Signs for one account."""

    @property
    def address(self) -> str: ...

    def sign(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Raises ``SigningRefused``."""
        ...


class LocalSigner:
    """A key in this process's memory."""

    def __init__(
        self, account: LocalAccount, *, chain_id: int, contracts: Collection[str], max_fee_per_gas: int
    ) -> None:
        self._account = account
        self._chain_id = chain_id
        self._contracts = {contract.lower() for contract in contracts}
        self._max_fee_per_gas = max_fee_per_gas

    def __repr__(self) -> str:
        return f"LocalSigner({self.address})"

    @property
    def address(self) -> str:
        """The account's address, in lower case."""
        return str(self._account.address).lower()

    def sign(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Sign an EIP-1559 transaction. Raises ``SigningRefused``."""
        if transaction.chain_id != self._chain_id:
            raise SigningRefused(f"chain {transaction.chain_id} is not the configured chain {self._chain_id}")
        if transaction.to.lower() not in self._contracts:
            raise SigningRefused(f"{transaction.to} is none of this node's contracts")
        if transaction.max_fee_per_gas > self._max_fee_per_gas:
            raise SigningRefused(
                f"{transaction.max_fee_per_gas} wei per gas is above the limit of {self._max_fee_per_gas} "
                "(FABSTIR_MAX_FEE_PER_GAS_WEI)"
            )
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": transaction.chain_id,
            "nonce": transaction.nonce,
            "to": to_checksum_address(transaction.to),
            "data": transaction.data,
            "value": transaction.value,
            "gas": transaction.gas_limit,
            "maxFeePerGas": transaction.max_fee_per_gas,
            "maxPriorityFeePerGas": transaction.max_priority_fee_per_gas,
        }
        signed = self._account.sign_transaction(fields)
        return SignedTransaction(raw=bytes(signed.raw_transaction), hash=bytes(signed.hash))


def account_of_key(private_key: str) -> LocalAccount:
    """The account of a private key in hex. Raises ``KeyUnusable``."""
    try:
        account: LocalAccount = Account.from_key(private_key.strip())
    except (ValueError, TypeError):
        # The cause may quote the key.
        raise KeyUnusable("HOST_PRIVATE_KEY is not a valid secp256k1 private key (value not shown)") from None
    return account


def account_of_keystore(keystore: Path, *, password_file: Path) -> LocalAccount:
    """The account of a keystore V3 file. Raises ``KeyUnusable``."""
    try:
        encrypted = json.loads(keystore.read_text())
        password = password_file.read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise KeyUnusable(f"{keystore} or its password file cannot be read: {error}") from error
    try:
        return account_of_key(Account.decrypt(encrypted, password).hex())
    except (ValueError, TypeError, KeyError, NotImplementedError):
        raise KeyUnusable(f"{keystore} cannot be opened with the password in {password_file}") from None


def compressed_public_key(account: LocalAccount) -> str:
    """The account's public key: 33 bytes, hex, as clients expect it in the host's metadata."""
    return "0x" + account._key_obj.public_key.to_compressed_bytes().hex()
