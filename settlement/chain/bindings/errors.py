"""The contracts' own errors.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import ContractRefusal, ErrorSpec


@dataclass(frozen=True, slots=True)
class AlreadyRegistered(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("AlreadyRegistered", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    operator: ChecksumAddress


@dataclass(frozen=True, slots=True)
class ClaimTooFast(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ClaimTooFast", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    claimed: int
    allowed: int


@dataclass(frozen=True, slots=True)
class DepositBelowProofInterval(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DepositBelowProofInterval", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    affordable: int
    proof_interval: int


@dataclass(frozen=True, slots=True)
class DepositNotReceived(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DepositNotReceived", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    expected: int
    received: int


@dataclass(frozen=True, slots=True)
class DepositTooLarge(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DepositTooLarge", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    deposit: int
    maximum: int


@dataclass(frozen=True, slots=True)
class DepositTooSmall(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DepositTooSmall", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    deposit: int
    minimum: int


@dataclass(frozen=True, slots=True)
class DisputeWindowOpen(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DisputeWindowOpen", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    until: int


@dataclass(frozen=True, slots=True)
class DurationOutOfRange(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("DurationOutOfRange", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    duration: int
    maximum: int


@dataclass(frozen=True, slots=True)
class EmptyApiUrl(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("EmptyApiUrl", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class EmptyMetadata(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("EmptyMetadata", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class EmptyModelName(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("EmptyModelName", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class ExceedsDeposit(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ExceedsDeposit", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    claimed: int
    affordable: int


@dataclass(frozen=True, slots=True)
class FeeTooHigh(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("FeeTooHigh", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    fee_basis_points: int


@dataclass(frozen=True, slots=True)
class HostNotActive(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("HostNotActive", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    host: ChecksumAddress


@dataclass(frozen=True, slots=True)
class HostNotRegistered(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("HostNotRegistered", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    host: ChecksumAddress


@dataclass(frozen=True, slots=True)
class IdleTimeoutOutOfRange(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("IdleTimeoutOutOfRange", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    seconds_idle: int


@dataclass(frozen=True, slots=True)
class InsufficientEarnings(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("InsufficientEarnings", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    requested: int
    available: int


@dataclass(frozen=True, slots=True)
class InvalidDepositLimits(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("InvalidDepositLimits", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class ModelAlreadyAdded(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ModelAlreadyAdded", ("bytes32",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    model_id: bytes


@dataclass(frozen=True, slots=True)
class ModelNotApproved(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ModelNotApproved", ("bytes32",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    model_id: bytes


@dataclass(frozen=True, slots=True)
class NoModels(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NoModels", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class NotAssignedHost(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotAssignedHost", ("address", "address"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    caller: ChecksumAddress
    host: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NotAuthorizedCaller(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotAuthorizedCaller", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    caller: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NotMarketplace(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotMarketplace", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    caller: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NotParticipant(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotParticipant", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    caller: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NotRegistered(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotRegistered", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    operator: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NotTreasury(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NotTreasury", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    caller: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NothingForTreasury(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NothingForTreasury", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    token: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NothingToRefund(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NothingToRefund", ("address", "address"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    requester: ChecksumAddress
    token: ChecksumAddress


@dataclass(frozen=True, slots=True)
class NothingToWithdraw(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("NothingToWithdraw", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    host: ChecksumAddress


@dataclass(frozen=True, slots=True)
class PaymentFailed(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("PaymentFailed", ("address", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    recipient: ChecksumAddress
    amount: int


@dataclass(frozen=True, slots=True)
class PriceBelowMinimum(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("PriceBelowMinimum", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    price: int
    minimum: int


@dataclass(frozen=True, slots=True)
class ProofAlreadyUsed(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ProofAlreadyUsed", ("bytes32",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    proof_hash: bytes


@dataclass(frozen=True, slots=True)
class ProofIntervalTooSmall(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ProofIntervalTooSmall", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    proof_interval: int
    minimum: int


@dataclass(frozen=True, slots=True)
class ProofRejected(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ProofRejected", ("bytes32",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    proof_hash: bytes


@dataclass(frozen=True, slots=True)
class ProofTooShort(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ProofTooShort", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    length: int


@dataclass(frozen=True, slots=True)
class RateOutOfRange(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("RateOutOfRange", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    tokens_per_second: int


@dataclass(frozen=True, slots=True)
class SessionNotActive(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("SessionNotActive", ("uint256", "uint8"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    job_id: int
    status: int


@dataclass(frozen=True, slots=True)
class SessionNotTimedOut(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("SessionNotTimedOut", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    job_id: int
    deadline: int


@dataclass(frozen=True, slots=True)
class StakeTooSmall(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("StakeTooSmall", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    sent: int
    minimum: int


@dataclass(frozen=True, slots=True)
class TokenNotAccepted(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("TokenNotAccepted", ("address",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    token: ChecksumAddress


@dataclass(frozen=True, slots=True)
class TooFewTokens(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("TooFewTokens", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    claimed: int
    minimum: int


@dataclass(frozen=True, slots=True)
class UnbackedCredit(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("UnbackedCredit", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    owed: int
    held: int


@dataclass(frozen=True, slots=True)
class UnknownJob(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("UnknownJob", ("uint256",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    job_id: int


@dataclass(frozen=True, slots=True)
class UnknownModel(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("UnknownModel", ("bytes32",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    model_id: bytes


@dataclass(frozen=True, slots=True)
class UnknownVerifier(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("UnknownVerifier", ("bytes4",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    selector: bytes


@dataclass(frozen=True, slots=True)
class VerifierAlreadyListed(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("VerifierAlreadyListed", ("bytes4",))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    selector: bytes


@dataclass(frozen=True, slots=True)
class WrongValue(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("WrongValue", ("uint256", "uint256"))
    SELECTOR: ClassVar[bytes] = SPEC.selector
    expected: int
    sent: int


@dataclass(frozen=True, slots=True)
class ZeroAddress(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ZeroAddress", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class ZeroAmount(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ZeroAmount", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class ZeroMinimumPrice(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ZeroMinimumPrice", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector


@dataclass(frozen=True, slots=True)
class ZeroPrice(ContractRefusal):
    SPEC: ClassVar[ErrorSpec] = ErrorSpec("ZeroPrice", ())
    SELECTOR: ClassVar[bytes] = SPEC.selector
