"""The signer: holds the host's key and signs what it is allowed to sign.

Guarantees that nothing is signed but the calls that a host's work consists of, each within its limits of
value, gas, fee and of all that 24 hours may cost, and that the key appears in no ``repr``, copy, error or
log. Trusts nobody's judgement but its rules', so that a fault elsewhere in the node cannot spend more. Needs
neither network nor database: it could run in a process, or on a machine, of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_signature_to_4byte_selector

from settlement.chain.addresses import to_checksum_address
from settlement.chain.contracts import CodecError, decode_values

MAX_GAS = 2**24
"""A transaction with more gas is refused by Base and, since EIP-7825, by Ethereum."""
# Far more than are in flight at once (FABSTIR_MAX_IN_FLIGHT, 64 unless told): only those are signed again.
_NONCES_KNOWN = 1000
_DAY_SECONDS = 24 * 3600
_MAX_STAKE = 10**18

# By generation of the contracts; what a host sends, and nothing that an owner or a user may.
_MARKETPLACE_CALLS = (
    "submitProofOfWork(uint256,uint256,bytes)",
    "submitProofOfWork(uint256,uint256,bytes32,string)",
    "submitProofOfWork(uint256,uint256,bytes32,string,string)",
    "submitProofOfWork(uint256,uint256,bytes32,bytes,string)",
    "submitProofOfWork(uint256,uint256,bytes32,bytes,string,string)",
    "completeSessionJob(uint256,string)",
    "completeSessionJobWithProof(uint256,uint256,bytes,string)",
    "triggerSessionTimeout(uint256)",
)
_EARNINGS_CALLS = ("withdraw(uint256,address)", "withdrawAll(address)", "withdrawMultiple(address[])")
_REGISTRY_CALLS = (
    "unregisterNode()",
    "setActive(bool)",
    "updateApiUrl(string)",
    "updateMetadata(string)",
    "updatePricingNative(uint256)",
    "updatePricingStable(uint256)",
    "updateSupportedModels(bytes32[])",
)
_STAKING_CALLS = ("registerNode(string,string,bytes32[],uint256,uint256)", "stake()")
_TOKEN_TRANSFER = "transfer(address,uint256)"  # noqa: S105 - a token that is money


class SigningRefused(Exception):
    """The transaction is not one that this key may sign. Says which limit it breaks."""


class KeyUnusable(Exception):
    """The host's key cannot be read. Says which file and why, never the key."""


class KeyNotCopied(TypeError):
    """Something tried to copy or to store a signer, and with it its key."""


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

    @property
    def worst_cost(self) -> int:
        """wei that its gas may cost on this chain, its value and any fee of another chain apart."""
        return self.gas_limit * self.max_fee_per_gas


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A function of one contract that may be called with up to ``max_value`` wei.

    With ``recipient``, only where that is the call's first argument.
    """

    contract: str
    selector: bytes
    max_value: int = 0
    recipient: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRules:
    """What may be signed. Costs in wei; ``daily_cost`` bounds the worst case of 24 hours' signatures.

    Besides ``permissions``: an empty transaction of the account to itself, which fills or cancels a
    nonce, and ether to ``sweep_to``.
    """

    chain_id: int
    permissions: tuple[Permission, ...]
    max_fee_per_gas: int
    max_cost: int
    daily_cost: int
    max_gas: int = MAX_GAS
    sweep_to: str | None = None
    _by_call: dict[tuple[str, bytes], Permission] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_call = {(each.contract.lower(), each.selector): each for each in self.permissions}
        object.__setattr__(self, "_by_call", by_call)

    def check(self, transaction: UnsignedTransaction, *, sender: str) -> None:
        """Raises ``SigningRefused`` for what may not be signed, whatever was signed before."""
        if transaction.chain_id != self.chain_id:
            raise SigningRefused(f"chain {transaction.chain_id} is not the configured chain {self.chain_id} (CHAIN_ID)")
        self._check_limits(transaction)
        to, data, value = transaction.to.lower(), transaction.data, transaction.value
        if not data:
            if to == sender.lower() and value == 0:
                return
            if self.sweep_to is not None and to == self.sweep_to.lower():
                return
            raise SigningRefused(
                f"{value} wei to {transaction.to}: ether goes to the sweep address only (FABSTIR_SWEEP_TO)"
            )
        self._check_call(transaction, self._permission(to, data[:4]))

    def _permission(self, to: str, selector: bytes) -> Permission:
        permission = self._by_call.get((to, selector))
        if permission is None and to in {contract for contract, _ in self._by_call}:
            raise SigningRefused(f"a host calls no function 0x{selector.hex()} of {to}")
        if permission is None:
            raise SigningRefused(f"{to} is none of this node's contracts (CONTRACT_JOB_MARKETPLACE and its siblings)")
        return permission

    def _check_limits(self, transaction: UnsignedTransaction) -> None:
        if transaction.gas_limit > self.max_gas:
            raise SigningRefused(f"{transaction.gas_limit} gas is above the chain's limit of {self.max_gas}")
        if transaction.max_fee_per_gas > self.max_fee_per_gas:
            raise SigningRefused(
                f"{transaction.max_fee_per_gas} wei per gas is above the limit of {self.max_fee_per_gas} "
                "(FABSTIR_MAX_FEE_PER_GAS_WEI)"
            )
        if transaction.worst_cost > self.max_cost:
            raise SigningRefused(
                f"its gas may cost {transaction.worst_cost} wei, above the limit of {self.max_cost} "
                "(FABSTIR_MAX_TRANSACTION_COST_WEI)"
            )

    def _check_call(self, transaction: UnsignedTransaction, permission: Permission) -> None:
        if transaction.value > permission.max_value:
            raise SigningRefused(
                f"{transaction.value} wei with a call of {transaction.to} is above the limit of "
                f"{permission.max_value} (the contracts that CONTRACT_NODE_REGISTRY and its siblings name)"
            )
        if permission.recipient is None:
            return
        try:
            recipient = str(decode_values(("address", "uint256"), transaction.data[4:])[0])
        except CodecError:
            recipient = "an unreadable address"
        if recipient.lower() != permission.recipient.lower():
            raise SigningRefused(f"tokens go to the sweep address only (FABSTIR_SWEEP_TO), not to {recipient}")


def host_rules(
    *,
    chain_id: int,
    marketplace: str,
    max_fee_per_gas: int,
    max_cost: int,
    daily_cost: int,
    host_earnings: str | None = None,
    node_registry: str | None = None,
    usdc: str | None = None,
    sweep_to: str | None = None,
    max_stake: int = _MAX_STAKE,
) -> SigningRules:
    """What a host's key may sign: claims and ends of jobs, withdrawals, its registration, and the sweep.

    Contracts by address, ``None`` for those that the deployment does not have; ``max_stake`` in wei.
    """
    permissions = [
        *_permissions(marketplace, _MARKETPLACE_CALLS),
        *_permissions(host_earnings, _EARNINGS_CALLS),
        *_permissions(node_registry, _REGISTRY_CALLS),
        *_permissions(node_registry, _STAKING_CALLS, max_value=max_stake),
    ]
    if sweep_to is not None:
        permissions += _permissions(usdc, (_TOKEN_TRANSFER,), recipient=sweep_to)
    return SigningRules(
        chain_id=chain_id,
        permissions=tuple(permissions),
        max_fee_per_gas=max_fee_per_gas,
        max_cost=max_cost,
        daily_cost=daily_cost,
        sweep_to=sweep_to,
    )


class LocalSigner:
    """A key in this process's memory, used by the rules and by nothing else."""

    __slots__ = ("_address", "_clock", "_day", "_lock", "_signs", "rules")

    def __init__(
        self, account: LocalAccount, *, rules: SigningRules, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = str(account.address).lower()
        # The method and not the account: no attribute of this object holds the key.
        self._signs: Callable[[dict[str, Any]], Any] = account.sign_transaction
        self.rules = rules
        self._clock = clock
        self._lock = threading.Lock()
        self._day = _Day()

    def __repr__(self) -> str:
        return f"LocalSigner({self.address})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise KeyNotCopied("a signer is neither copied nor stored: it holds a key")

    @property
    def address(self) -> str:
        """The account's address, in lower case."""
        return self._address

    def sign(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Sign an EIP-1559 transaction. Raises ``SigningRefused``."""
        self.rules.check(transaction, sender=self._address)
        with self._lock:
            self._day.add(transaction, now=self._clock(), limit=self.rules.daily_cost)
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
        signed = self._signs(fields)
        return SignedTransaction(raw=bytes(signed.raw_transaction), hash=bytes(signed.hash))


class _Day:
    """What the signatures of the last 24 hours may cost together.

    One nonce is paid for once, however often it is signed: it counts with its dearest signature. Of a busy
    day only the newest nonces are known one by one, the rest by the minute: signed again, such an old one
    counts twice, which errs on the safe side.
    """

    __slots__ = ("_by_minute", "_by_nonce", "_total")

    def __init__(self) -> None:
        self._by_nonce: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._by_minute: OrderedDict[int, int] = OrderedDict()
        self._total = 0

    def add(self, transaction: UnsignedTransaction, *, now: float, limit: int) -> None:
        """Raises ``SigningRefused``, and then counts nothing."""
        self._forget_before(now - _DAY_SECONDS)
        earlier = self._by_nonce.get(transaction.nonce, (now, 0))[1]
        cost = max(earlier, transaction.worst_cost)
        if self._total - earlier + cost > limit:
            raise SigningRefused(
                f"the signatures of 24 hours may cost {self._total - earlier + cost} wei, above the signer's limit "
                f"of {limit} (a multiple of FABSTIR_DAILY_GAS_BUDGET_WEI)"
            )
        self._total += cost - earlier
        self._by_nonce[transaction.nonce] = (now, cost)
        self._by_nonce.move_to_end(transaction.nonce)
        while len(self._by_nonce) > _NONCES_KNOWN:
            signed_at, spent = self._by_nonce.popitem(last=False)[1]
            minute = int(signed_at // 60)
            self._by_minute[minute] = self._by_minute.get(minute, 0) + spent

    def _forget_before(self, moment: float) -> None:
        while self._by_minute and (next(iter(self._by_minute)) + 1) * 60 <= moment:
            self._total -= self._by_minute.popitem(last=False)[1]
        while self._by_nonce and next(iter(self._by_nonce.values()))[0] < moment:
            self._total -= self._by_nonce.popitem(last=False)[1][1]


def account_of_key(private_key: str) -> LocalAccount:
    """The account of a private key in hex. Raises ``KeyUnusable``."""
    try:
        account: LocalAccount = Account.from_key(private_key.strip())
    except (ValueError, TypeError):
        # The cause may quote the key.
        raise KeyUnusable("HOST_PRIVATE_KEY is not a valid secp256k1 private key (value not shown)") from None
    return account


def account_of_keystore(keystore: Path, *, password_file: Path) -> LocalAccount:
    """The account of a keystore V3 file. Raises ``KeyUnusable``.

    Neither file opens the key alone, so at least one of them has to be kept from the machine's other users.
    """
    try:
        open_to_all = _everyone_can_read(keystore) and _everyone_can_read(password_file)
        encrypted = json.loads(keystore.read_text())
        password = password_file.read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON text"
        raise KeyUnusable(f"{keystore} or its password file {password_file} cannot be read: {reason}") from None
    if open_to_all:
        raise KeyUnusable(
            f"every user of this machine can read {keystore} and {password_file}: run chmod 600 on them and, if the "
            "machine has other users, move the funds to a new key"
        )
    try:
        return account_of_key(Account.decrypt(encrypted, password).hex())
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
        raise KeyUnusable(f"{keystore} cannot be opened with the password in {password_file}") from None


def compressed_public_key(account: LocalAccount) -> str:
    """The account's public key: 33 bytes, hex, as clients expect it in the host's metadata."""
    return "0x" + account._key_obj.public_key.to_compressed_bytes().hex()


def _everyone_can_read(path: Path) -> bool:
    """Whether a file is readable for users who are neither its owner nor in its group."""
    real = path.resolve()
    reachable = all(folder.stat().st_mode & 0o001 for folder in real.parents)
    return reachable and bool(real.stat().st_mode & 0o004)


def _permissions(
    contract: str | None, functions: tuple[str, ...], *, max_value: int = 0, recipient: str | None = None
) -> list[Permission]:
    if contract is None:
        return []
    return [
        Permission(
            contract=contract,
            selector=function_signature_to_4byte_selector(each),
            max_value=max_value,
            recipient=recipient,
        )
        for each in functions
    ]
