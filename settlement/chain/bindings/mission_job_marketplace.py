"""Rows, events and calls of MissionJobMarketplace; what they mean is told in MissionJobMarketplace.sol.

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
    requester: ChecksumAddress
    host: ChecksumAddress
    payment_token: ChecksumAddress
    deposit: int
    price_per_token: int
    tokens_used: int
    max_duration: int
    start_time: int
    last_proof_time: int
    proof_interval: int
    status: int
    withdrawn_by_host: int
    refunded_to_user: int
    conversation_cid: str

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> SessionJob:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            id=values[0],
            requester=to_checksum_address(values[1]),
            host=to_checksum_address(values[2]),
            payment_token=to_checksum_address(values[3]),
            deposit=values[4],
            price_per_token=values[5],
            tokens_used=values[6],
            max_duration=values[7],
            start_time=values[8],
            last_proof_time=values[9],
            proof_interval=values[10],
            status=values[11],
            withdrawn_by_host=values[12],
            refunded_to_user=values[13],
            conversation_cid=values[14],
        )


@dataclass(frozen=True, slots=True)
class ProofSubmitted(ContractEvent):
    SPEC: ClassVar[EventSpec] = EventSpec(
        "ProofSubmitted", ("uint256", "address", "uint256", "bytes32"), (True, True, False, False)
    )
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    host: ChecksumAddress
    tokens_claimed: int
    proof_hash: bytes


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
    SPEC: ClassVar[EventSpec] = EventSpec("SessionTimedOut", ("uint256", "uint256", "uint256"), (True, False, False))
    topic: ClassVar[bytes] = SPEC.topic
    job_id: int
    host_earnings: int
    user_refund: int


class MissionJobMarketplace(Contract):
    """A deployed MissionJobMarketplace; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "DISPUTE_WINDOW": FunctionSpec("DISPUTE_WINDOW", (), ("uint256",)),
        "FEE_BASIS_POINTS": FunctionSpec("FEE_BASIS_POINTS", (), ("uint256",)),
        "MIN_PROVEN_TOKENS": FunctionSpec("MIN_PROVEN_TOKENS", (), ("uint256",)),
        "accumulatedTreasuryETH": FunctionSpec("accumulatedTreasuryETH", (), ("uint256",)),
        "accumulatedTreasuryTokens": FunctionSpec("accumulatedTreasuryTokens", ("address",), ("uint256",)),
        "completeSessionJob": FunctionSpec("completeSessionJob", ("uint256", "string"), ()),
        "createSessionJob": FunctionSpec(
            "createSessionJob", ("address", "uint256", "uint256", "uint256"), ("uint256",)
        ),
        "createSessionJobWithToken": FunctionSpec(
            "createSessionJobWithToken",
            ("address", "address", "uint256", "uint256", "uint256", "uint256"),
            ("uint256",),
        ),
        "hostSessions": FunctionSpec("hostSessions", ("address", "uint256"), ("uint256",)),
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
                "uint8",
                "uint256",
                "uint256",
                "string",
            ),
        ),
        "submitProofOfWork": FunctionSpec("submitProofOfWork", ("uint256", "uint256", "bytes"), ()),
        "treasuryAddress": FunctionSpec("treasuryAddress", (), ("address",)),
        "triggerSessionTimeout": FunctionSpec("triggerSessionTimeout", ("uint256",), ()),
    }

    def dispute_window(self) -> Call[int]:
        return self._call("DISPUTE_WINDOW", (), single)

    def fee_basis_points(self) -> Call[int]:
        return self._call("FEE_BASIS_POINTS", (), single)

    def min_proven_tokens(self) -> Call[int]:
        return self._call("MIN_PROVEN_TOKENS", (), single)

    def accumulated_treasury_eth(self) -> Call[int]:
        return self._call("accumulatedTreasuryETH", (), single)

    def accumulated_treasury_tokens(self, token: ChecksumAddress) -> Call[int]:
        return self._call("accumulatedTreasuryTokens", (token,), single)

    def complete_session_job(self, *, job_id: int, conversation_cid: str) -> Call[None]:
        return self._call("completeSessionJob", (job_id, conversation_cid), nothing)

    def create_session_job(
        self, *, host: ChecksumAddress, price_per_token: int, max_duration: int, proof_interval: int, value: int
    ) -> Call[int]:
        return self._call(
            "createSessionJob", (host, price_per_token, max_duration, proof_interval), single, value=value
        )

    def create_session_job_with_token(
        self,
        *,
        host: ChecksumAddress,
        token: ChecksumAddress,
        deposit: int,
        price_per_token: int,
        max_duration: int,
        proof_interval: int,
    ) -> Call[int]:
        return self._call(
            "createSessionJobWithToken", (host, token, deposit, price_per_token, max_duration, proof_interval), single
        )

    def host_sessions(self, *, host: ChecksumAddress, index: int) -> Call[int]:
        return self._call("hostSessions", (host, index), single)

    def next_job_id(self) -> Call[int]:
        return self._call("nextJobId", (), single)

    def session_jobs(self, job_id: int) -> Call[SessionJob]:
        return self._call("sessionJobs", (job_id,), SessionJob.from_values)

    def submit_proof_of_work(self, *, job_id: int, tokens_claimed: int, proof: bytes) -> Call[None]:
        return self._call("submitProofOfWork", (job_id, tokens_claimed, proof), nothing)

    def treasury_address(self) -> Call[ChecksumAddress]:
        return self._call("treasuryAddress", (), single)

    def trigger_session_timeout(self, job_id: int) -> Call[None]:
        return self._call("triggerSessionTimeout", (job_id,), nothing)
