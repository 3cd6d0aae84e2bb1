"""Rows, events and calls of ModelJobMarketplace; what they mean is told in ModelJobMarketplace.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.addresses import to_checksum_address
from settlement.chain.contracts import Call, Contract, ContractEvent, EventSpec, FunctionSpec, nothing, single


@dataclass(frozen=True, slots=True)
class SessionJob:
    """The contracts' SessionJob."""

    id: int
    depositor: ChecksumAddress
    host: ChecksumAddress
    payment_token: ChecksumAddress
    deposit: int
    price_per_token: int
    tokens_used: int
    max_duration: int
    start_time: int
    last_proof_time: int
    proof_interval: int
    proof_timeout_window: int
    status: int
    withdrawn_by_host: int
    refunded_to_user: int
    conversation_cid: str
    last_proof_hash: bytes
    last_proof_cid: str

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> SessionJob:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            id=values[0],
            depositor=to_checksum_address(values[1]),
            host=to_checksum_address(values[2]),
            payment_token=to_checksum_address(values[3]),
            deposit=values[4],
            price_per_token=values[5],
            tokens_used=values[6],
            max_duration=values[7],
            start_time=values[8],
            last_proof_time=values[9],
            proof_interval=values[10],
            proof_timeout_window=values[11],
            status=values[12],
            withdrawn_by_host=values[13],
            refunded_to_user=values[14],
            conversation_cid=values[15],
            last_proof_hash=values[16],
            last_proof_cid=values[17],
        )


@dataclass(frozen=True, slots=True)
class ProofSubmitted(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "ProofSubmitted",
        ("uint256", "address", "uint256", "bytes32", "string", "string"),
        (True, True, False, False, False, False),
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    host: ChecksumAddress
    tokens_claimed: int
    proof_hash: bytes
    proof_cid: str
    delta_cid: str


@dataclass(frozen=True, slots=True)
class RefundCreditedToDeposit(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "RefundCreditedToDeposit", ("uint256", "address", "uint256", "address"), (True, True, False, True)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    depositor: ChecksumAddress
    amount: int
    token: ChecksumAddress


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
class SessionCompletedBy(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionCompletedBy", ("uint256", "address", "uint256", "uint256", "uint256"), (True, True, False, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    completed_by: ChecksumAddress
    tokens_used: int
    payment_amount: int
    refund_amount: int


@dataclass(frozen=True, slots=True)
class SessionJobCreated(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionJobCreated", ("uint256", "address", "address", "uint256"), (True, True, True, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    depositor: ChecksumAddress
    host: ChecksumAddress
    deposit: int


@dataclass(frozen=True, slots=True)
class SessionJobCreatedForModel(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "SessionJobCreatedForModel",
        ("uint256", "address", "address", "bytes32", "uint256"),
        (True, True, True, False, False),
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    depositor: ChecksumAddress
    host: ChecksumAddress
    model_id: bytes
    deposit: int


@dataclass(frozen=True, slots=True)
class SessionTimedOut(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec("SessionTimedOut", ("uint256", "uint256", "uint256"), (True, False, False))
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    host_earnings: int
    user_refund: int


class ModelJobMarketplace(Contract):
    """A deployed ModelJobMarketplace; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "MIN_PROVEN_TOKENS": FunctionSpec("MIN_PROVEN_TOKENS", (), ("uint256",)),
        "PRICE_PRECISION": FunctionSpec("PRICE_PRECISION", (), ("uint256",)),
        "accumulatedTreasuryNative": FunctionSpec("accumulatedTreasuryNative", (), ("uint256",)),
        "accumulatedTreasuryTokens": FunctionSpec("accumulatedTreasuryTokens", ("address",), ("uint256",)),
        "completeSessionJob": FunctionSpec("completeSessionJob", ("uint256", "string"), ()),
        "createSessionJobForModel": FunctionSpec(
            "createSessionJobForModel", ("address", "bytes32", "uint256", "uint256", "uint256", "uint256"), ("uint256",)
        ),
        "createSessionJobForModelWithToken": FunctionSpec(
            "createSessionJobForModelWithToken",
            ("address", "bytes32", "address", "uint256", "uint256", "uint256", "uint256", "uint256"),
            ("uint256",),
        ),
        "disputeWindow": FunctionSpec("disputeWindow", (), ("uint256",)),
        "feeBasisPoints": FunctionSpec("feeBasisPoints", (), ("uint256",)),
        "getDepositBalance": FunctionSpec("getDepositBalance", ("address", "address"), ("uint256",)),
        "hostSessions": FunctionSpec("hostSessions", ("address", "uint256"), ("uint256",)),
        "minTokensFee": FunctionSpec("minTokensFee", (), ("uint256",)),
        "nextJobId": FunctionSpec("nextJobId", (), ("uint256",)),
        "sessionJobs": FunctionSpec(
            "sessionJobs",
            ("uint256",),
            (
                "uint256",
                "address",
                "address",
                "address",
                "uint256",
                "uint256",
                "uint256",
                "uint256",
                "uint256",
                "uint256",
                "uint256",
                "uint256",
                "uint8",
                "uint256",
                "uint256",
                "string",
                "bytes32",
                "string",
            ),
        ),
        "sessionModel": FunctionSpec("sessionModel", ("uint256",), ("bytes32",)),
        "submitProofOfWork": FunctionSpec(
            "submitProofOfWork", ("uint256", "uint256", "bytes32", "string", "string"), ()
        ),
        "treasuryAddress": FunctionSpec("treasuryAddress", (), ("address",)),
        "triggerSessionTimeout": FunctionSpec("triggerSessionTimeout", ("uint256",), ()),
    }

    def min_proven_tokens(self) -> Call[int]:
        return self._call("MIN_PROVEN_TOKENS", (), single)

    def price_precision(self) -> Call[int]:
        return self._call("PRICE_PRECISION", (), single)

    def accumulated_treasury_native(self) -> Call[int]:
        return self._call("accumulatedTreasuryNative", (), single)

    def accumulated_treasury_tokens(self, token: ChecksumAddress) -> Call[int]:
        return self._call("accumulatedTreasuryTokens", (token,), single)

    def complete_session_job(self, *, job_id: int, conversation_cid: str) -> Call[None]:
        return self._call("completeSessionJob", (job_id, conversation_cid), nothing)

    def create_session_job_for_model(
        self,
        *,
        host: ChecksumAddress,
        model_id: bytes,
        price_per_token: int,
        max_duration: int,
        proof_interval: int,
        proof_timeout_window: int,
        value: int,
    ) -> Call[int]:
        return self._call(
            "createSessionJobForModel",
            (host, model_id, price_per_token, max_duration, proof_interval, proof_timeout_window),
            single,
            value=value,
        )

    def create_session_job_for_model_with_token(
        self,
        *,
        host: ChecksumAddress,
        model_id: bytes,
        token: ChecksumAddress,
        deposit: int,
        price_per_token: int,
        max_duration: int,
        proof_interval: int,
        proof_timeout_window: int,
    ) -> Call[int]:
        return self._call(
            "createSessionJobForModelWithToken",
            (host, model_id, token, deposit, price_per_token, max_duration, proof_interval, proof_timeout_window),
            single,
        )

    def dispute_window(self) -> Call[int]:
        return self._call("disputeWindow", (), single)

    def fee_basis_points(self) -> Call[int]:
        return self._call("feeBasisPoints", (), single)

    def get_deposit_balance(self, *, account: ChecksumAddress, token: ChecksumAddress) -> Call[int]:
        return self._call("getDepositBalance", (account, token), single)

    def host_sessions(self, *, host: ChecksumAddress, index: int) -> Call[int]:
        return self._call("hostSessions", (host, index), single)

    def min_tokens_fee(self) -> Call[int]:
        return self._call("minTokensFee", (), single)

    def next_job_id(self) -> Call[int]:
        return self._call("nextJobId", (), single)

    def session_jobs(self, job_id: int) -> Call[SessionJob]:
        return self._call("sessionJobs", (job_id,), SessionJob.from_values)

    def session_model(self, job_id: int) -> Call[bytes]:
        return self._call("sessionModel", (job_id,), single)

    def submit_proof_of_work(
        self, *, job_id: int, tokens_claimed: int, proof_hash: bytes, proof_cid: str, delta_cid: str
    ) -> Call[None]:
        return self._call("submitProofOfWork", (job_id, tokens_claimed, proof_hash, proof_cid, delta_cid), nothing)

    def treasury_address(self) -> Call[ChecksumAddress]:
        return self._call("treasuryAddress", (), single)

    def trigger_session_timeout(self, job_id: int) -> Call[None]:
        return self._call("triggerSessionTimeout", (job_id,), nothing)
