"""OpenZeppelin's errors.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import ContractRefusal, ErrorSpec


@dataclass(frozen=True, slots=True)
class ERC20InsufficientAllowance(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InsufficientAllowance", ("address", "uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    spender: ChecksumAddress
    allowance: int
    needed: int


@dataclass(frozen=True, slots=True)
class ERC20InsufficientBalance(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InsufficientBalance", ("address", "uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    sender: ChecksumAddress
    balance: int
    needed: int


@dataclass(frozen=True, slots=True)
class ERC20InvalidApprover(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InvalidApprover", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    approver: ChecksumAddress


@dataclass(frozen=True, slots=True)
class ERC20InvalidReceiver(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InvalidReceiver", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    receiver: ChecksumAddress


@dataclass(frozen=True, slots=True)
class ERC20InvalidSender(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InvalidSender", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    sender: ChecksumAddress


@dataclass(frozen=True, slots=True)
class ERC20InvalidSpender(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ERC20InvalidSpender", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    spender: ChecksumAddress


@dataclass(frozen=True, slots=True)
class OwnableInvalidOwner(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("OwnableInvalidOwner", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    owner: ChecksumAddress


@dataclass(frozen=True, slots=True)
class OwnableUnauthorizedAccount(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("OwnableUnauthorizedAccount", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    account: ChecksumAddress


@dataclass(frozen=True, slots=True)
class ReentrancyGuardReentrantCall(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ReentrancyGuardReentrantCall", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class SafeERC20FailedOperation(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("SafeERC20FailedOperation", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    token: ChecksumAddress
