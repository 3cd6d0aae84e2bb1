"""The contracts' events.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import ContractEvent, EventSpec


@dataclass(frozen=True, slots=True)
class ApiUrlUpdated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("ApiUrlUpdated", ("address", "string"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    api_url: str


@dataclass(frozen=True, slots=True)
class Approval(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("Approval", ("address", "address", "uint256"), (True, True, False))
    topic: ClassVar[bytes] = SPEC.topic
    owner: ChecksumAddress
    spender: ChecksumAddress
    value: int


@dataclass(frozen=True, slots=True)
class CallerAuthorized(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("CallerAuthorized", ("address", "bool"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    caller: ChecksumAddress
    authorized: bool


@dataclass(frozen=True, slots=True)
class DepositLimitsChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "DepositLimitsChanged", ("address", "uint256", "uint256"), (True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    token: ChecksumAddress
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class EarningsCredited(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "EarningsCredited", ("address", "address", "uint256", "uint256"), (True, True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    host: ChecksumAddress
    token: ChecksumAddress
    amount: int
    new_balance: int


@dataclass(frozen=True, slots=True)
class EarningsWithdrawn(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "EarningsWithdrawn", ("address", "address", "uint256", "uint256"), (True, True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    host: ChecksumAddress
    token: ChecksumAddress
    amount: int
    remaining_balance: int


@dataclass(frozen=True, slots=True)
class IdleTimeoutChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("IdleTimeoutChanged", ("uint256",), (False,))
    topic: ClassVar[bytes] = SPEC.topic
    seconds_idle: int


@dataclass(frozen=True, slots=True)
class MarketplaceChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("MarketplaceChanged", ("address", "bool"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    marketplace: ChecksumAddress
    authorized: bool


@dataclass(frozen=True, slots=True)
class MetadataUpdated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("MetadataUpdated", ("address", "string"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    metadata: str


@dataclass(frozen=True, slots=True)
class ModelAdded(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "ModelAdded", ("bytes32", "string", "string", "bytes32"), (True, False, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    model_id: bytes
    repo: str
    file: str
    sha256_hash: bytes


@dataclass(frozen=True, slots=True)
class ModelStatusChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("ModelStatusChanged", ("bytes32", "bool"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    model_id: bytes
    active: bool


@dataclass(frozen=True, slots=True)
class ModelsUpdated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("ModelsUpdated", ("address", "bytes32[]"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    model_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NodeRegistered(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "NodeRegistered", ("address", "uint256", "string", "bytes32[]"), (True, False, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    staked_amount: int
    metadata: str
    model_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NodeStatusChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("NodeStatusChanged", ("address", "bool"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    active: bool


@dataclass(frozen=True, slots=True)
class NodeUnregistered(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("NodeUnregistered", ("address", "uint256"), (True, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    returned_stake: int


@dataclass(frozen=True, slots=True)
class OwnershipTransferStarted(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("OwnershipTransferStarted", ("address", "address"), (True, True))
    topic: ClassVar[bytes] = SPEC.topic
    previous_owner: ChecksumAddress
    new_owner: ChecksumAddress


@dataclass(frozen=True, slots=True)
class OwnershipTransferred(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("OwnershipTransferred", ("address", "address"), (True, True))
    topic: ClassVar[bytes] = SPEC.topic
    previous_owner: ChecksumAddress
    new_owner: ChecksumAddress


@dataclass(frozen=True, slots=True)
class PricingUpdated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("PricingUpdated", ("address", "uint256", "uint256"), (True, False, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    min_price_native: int
    min_price_stable: int


@dataclass(frozen=True, slots=True)
class ProofOfWork(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "ProofOfWork", ("uint256", "address", "uint256", "bytes32"), (True, True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    host: ChecksumAddress
    tokens_claimed: int
    proof_hash: bytes


@dataclass(frozen=True, slots=True)
class ProofSystemChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("ProofSystemChanged", ("address",), (True,))
    topic: ClassVar[bytes] = SPEC.topic
    proof_system: ChecksumAddress


@dataclass(frozen=True, slots=True)
class RefundCredited(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "RefundCredited", ("uint256", "address", "address", "uint256"), (True, True, True, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    requester: ChecksumAddress
    token: ChecksumAddress
    amount: int


@dataclass(frozen=True, slots=True)
class RefundWithdrawn(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "RefundWithdrawn", ("address", "address", "address", "uint256"), (True, True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    requester: ChecksumAddress
    token: ChecksumAddress
    recipient: ChecksumAddress
    amount: int


@dataclass(frozen=True, slots=True)
class SessionCompleted(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionCompleted", ("uint256", "uint256", "uint256", "uint256"), (True, False, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    total_tokens_used: int
    host_earnings: int
    user_refund: int


@dataclass(frozen=True, slots=True)
class SessionJobCreated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionJobCreated", ("uint256", "address", "address", "uint256"), (True, True, True, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    requester: ChecksumAddress
    host: ChecksumAddress
    deposit: int


@dataclass(frozen=True, slots=True)
class SessionTimedOut(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionTimedOut", ("uint256", "uint256", "uint256", "uint256"), (True, False, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    total_tokens_used: int
    host_earnings: int
    user_refund: int


@dataclass(frozen=True, slots=True)
class StakeAdded(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("StakeAdded", ("address", "uint256", "uint256"), (True, False, False))
    topic: ClassVar[bytes] = SPEC.topic
    operator: ChecksumAddress
    amount: int
    staked_amount: int


@dataclass(frozen=True, slots=True)
class Transfer(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("Transfer", ("address", "address", "uint256"), (True, True, False))
    topic: ClassVar[bytes] = SPEC.topic
    from_: ChecksumAddress
    to: ChecksumAddress
    value: int


@dataclass(frozen=True, slots=True)
class TreasuryChanged(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("TreasuryChanged", ("address",), (True,))
    topic: ClassVar[bytes] = SPEC.topic
    treasury: ChecksumAddress


@dataclass(frozen=True, slots=True)
class TreasuryCredited(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("TreasuryCredited", ("uint256", "address", "uint256"), (True, True, False))
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    token: ChecksumAddress
    amount: int


@dataclass(frozen=True, slots=True)
class TreasuryWithdrawn(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("TreasuryWithdrawn", ("address", "address", "uint256"), (True, True, False))
    topic: ClassVar[bytes] = SPEC.topic
    token: ChecksumAddress
    treasury: ChecksumAddress
    amount: int


@dataclass(frozen=True, slots=True)
class VerifierListed(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("VerifierListed", ("bytes4", "address"), (True, True))
    topic: ClassVar[bytes] = SPEC.topic
    selector: bytes
    verifier: ChecksumAddress


@dataclass(frozen=True, slots=True)
class VerifierUnlisted(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("VerifierUnlisted", ("bytes4", "address"), (True, True))
    topic: ClassVar[bytes] = SPEC.topic
    selector: bytes
    verifier: ChecksumAddress
