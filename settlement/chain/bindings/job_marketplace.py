"""Calls of the JobMarketplace contract; what they do is told in JobMarketplace.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.bindings.structs import DepositLimits, SessionJob
from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class JobMarketplace(Contract):
    """A deployed JobMarketplace; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "MAX_DURATION": FunctionSpec("MAX_DURATION", (), ("uint256",)),
        "MAX_ETH_DEPOSIT": FunctionSpec("MAX_ETH_DEPOSIT", (), ("uint256",)),
        "MAX_IDLE_TIMEOUT": FunctionSpec("MAX_IDLE_TIMEOUT", (), ("uint256",)),
        "MIN_ETH_DEPOSIT": FunctionSpec("MIN_ETH_DEPOSIT", (), ("uint256",)),
        "MIN_PROVEN_TOKENS": FunctionSpec("MIN_PROVEN_TOKENS", (), ("uint256",)),
        "acceptOwnership": FunctionSpec("acceptOwnership", (), ()),
        "affordableTokens": FunctionSpec("affordableTokens", ("uint256",), ("uint256",)),
        "completeSessionJob": FunctionSpec("completeSessionJob", ("uint256", "string"), ()),
        "completeSessionJobWithProof": FunctionSpec(
            "completeSessionJobWithProof", ("uint256", "uint256", "bytes", "string"), ()
        ),
        "createSessionJob": FunctionSpec(
            "createSessionJob", ("address", "uint256", "uint256", "uint256"), ("uint256",)
        ),
        "createSessionJobWithToken": FunctionSpec(
            "createSessionJobWithToken",
            ("address", "address", "uint256", "uint256", "uint256", "uint256"),
            ("uint256",),
        ),
        "depositLimits": FunctionSpec("depositLimits", ("address",), ("uint256", "uint256")),
        "disputeWindow": FunctionSpec("disputeWindow", (), ("uint256",)),
        "expectedTokensPerSecond": FunctionSpec("expectedTokensPerSecond", (), ("uint256",)),
        "feeBasisPoints": FunctionSpec("feeBasisPoints", (), ("uint256",)),
        "hostEarnings": FunctionSpec("hostEarnings", (), ("address",)),
        "hostSessionCount": FunctionSpec("hostSessionCount", ("address",), ("uint256",)),
        "hostSessionPage": FunctionSpec("hostSessionPage", ("address", "uint256", "uint256"), ("uint256[]",)),
        "hostSessions": FunctionSpec("hostSessions", ("address", "uint256"), ("uint256",)),
        "idleTimeout": FunctionSpec("idleTimeout", (), ("uint256",)),
        "isAcceptedToken": FunctionSpec("isAcceptedToken", ("address",), ("bool",)),
        "nextJobId": FunctionSpec("nextJobId", (), ("uint256",)),
        "nodeRegistry": FunctionSpec("nodeRegistry", (), ("address",)),
        "owner": FunctionSpec("owner", (), ("address",)),
        "pendingOwner": FunctionSpec("pendingOwner", (), ("address",)),
        "pendingRefund": FunctionSpec("pendingRefund", ("address", "address"), ("uint256",)),
        "proofSystem": FunctionSpec("proofSystem", (), ("address",)),
        "removeAcceptedToken": FunctionSpec("removeAcceptedToken", ("address",), ()),
        "renounceOwnership": FunctionSpec("renounceOwnership", (), ()),
        "sessionDeadline": FunctionSpec("sessionDeadline", ("uint256",), ("uint256",)),
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
                "uint256",
                "uint256",
            ),
        ),
        "setAcceptedToken": FunctionSpec("setAcceptedToken", ("address", "uint256", "uint256"), ()),
        "setIdleTimeout": FunctionSpec("setIdleTimeout", ("uint256",), ()),
        "setProofSystem": FunctionSpec("setProofSystem", ("address",), ()),
        "setTreasury": FunctionSpec("setTreasury", ("address",), ()),
        "submitProofOfWork": FunctionSpec("submitProofOfWork", ("uint256", "uint256", "bytes"), ()),
        "transferOwnership": FunctionSpec("transferOwnership", ("address",), ()),
        "treasury": FunctionSpec("treasury", (), ("address",)),
        "treasuryBalance": FunctionSpec("treasuryBalance", ("address",), ("uint256",)),
        "triggerSessionTimeout": FunctionSpec("triggerSessionTimeout", ("uint256",), ()),
        "usedProofs": FunctionSpec("usedProofs", ("bytes32",), ("bool",)),
        "userSessionCount": FunctionSpec("userSessionCount", ("address",), ("uint256",)),
        "userSessionPage": FunctionSpec("userSessionPage", ("address", "uint256", "uint256"), ("uint256[]",)),
        "userSessions": FunctionSpec("userSessions", ("address", "uint256"), ("uint256",)),
        "withdrawRefund": FunctionSpec("withdrawRefund", ("address",), ()),
        "withdrawRefundTo": FunctionSpec("withdrawRefundTo", ("address", "address"), ()),
        "withdrawTreasury": FunctionSpec("withdrawTreasury", ("address",), ()),
    }

    def max_duration(self) -> Call[int]:
        return self._call("MAX_DURATION", (), single)

    def max_eth_deposit(self) -> Call[int]:
        return self._call("MAX_ETH_DEPOSIT", (), single)

    def max_idle_timeout(self) -> Call[int]:
        return self._call("MAX_IDLE_TIMEOUT", (), single)

    def min_eth_deposit(self) -> Call[int]:
        return self._call("MIN_ETH_DEPOSIT", (), single)

    def min_proven_tokens(self) -> Call[int]:
        return self._call("MIN_PROVEN_TOKENS", (), single)

    def accept_ownership(self) -> Call[None]:
        return self._call("acceptOwnership", (), nothing)

    def affordable_tokens(self, job_id: int) -> Call[int]:
        return self._call("affordableTokens", (job_id,), single)

    def complete_session_job(self, *, job_id: int, conversation_cid: str) -> Call[None]:
        return self._call("completeSessionJob", (job_id, conversation_cid), nothing)

    def complete_session_job_with_proof(
        self, *, job_id: int, tokens_claimed: int, proof: bytes, conversation_cid: str
    ) -> Call[None]:
        return self._call("completeSessionJobWithProof", (job_id, tokens_claimed, proof, conversation_cid), nothing)

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

    def deposit_limits(self, token: ChecksumAddress) -> Call[DepositLimits]:
        return self._call("depositLimits", (token,), DepositLimits.from_values)

    def dispute_window(self) -> Call[int]:
        return self._call("disputeWindow", (), single)

    def expected_tokens_per_second(self) -> Call[int]:
        return self._call("expectedTokensPerSecond", (), single)

    def fee_basis_points(self) -> Call[int]:
        return self._call("feeBasisPoints", (), single)

    def host_earnings(self) -> Call[ChecksumAddress]:
        return self._call("hostEarnings", (), single)

    def host_session_count(self, host: ChecksumAddress) -> Call[int]:
        return self._call("hostSessionCount", (host,), single)

    def host_session_page(self, *, host: ChecksumAddress, offset: int, limit: int) -> Call[tuple[int, ...]]:
        return self._call("hostSessionPage", (host, offset, limit), single)

    def host_sessions(self, *, host: ChecksumAddress, index: int) -> Call[int]:
        return self._call("hostSessions", (host, index), single)

    def idle_timeout(self) -> Call[int]:
        return self._call("idleTimeout", (), single)

    def is_accepted_token(self, token: ChecksumAddress) -> Call[bool]:
        return self._call("isAcceptedToken", (token,), single)

    def next_job_id(self) -> Call[int]:
        return self._call("nextJobId", (), single)

    def node_registry(self) -> Call[ChecksumAddress]:
        return self._call("nodeRegistry", (), single)

    def owner(self) -> Call[ChecksumAddress]:
        return self._call("owner", (), single)

    def pending_owner(self) -> Call[ChecksumAddress]:
        return self._call("pendingOwner", (), single)

    def pending_refund(self, *, requester: ChecksumAddress, token: ChecksumAddress) -> Call[int]:
        return self._call("pendingRefund", (requester, token), single)

    def proof_system(self) -> Call[ChecksumAddress]:
        return self._call("proofSystem", (), single)

    def remove_accepted_token(self, token: ChecksumAddress) -> Call[None]:
        return self._call("removeAcceptedToken", (token,), nothing)

    def renounce_ownership(self) -> Call[None]:
        return self._call("renounceOwnership", (), nothing)

    def session_deadline(self, job_id: int) -> Call[int]:
        return self._call("sessionDeadline", (job_id,), single)

    def session_jobs(self, job_id: int) -> Call[SessionJob]:
        return self._call("sessionJobs", (job_id,), SessionJob.from_values)

    def set_accepted_token(self, *, token: ChecksumAddress, minimum: int, maximum: int) -> Call[None]:
        return self._call("setAcceptedToken", (token, minimum, maximum), nothing)

    def set_idle_timeout(self, seconds_idle: int) -> Call[None]:
        return self._call("setIdleTimeout", (seconds_idle,), nothing)

    def set_proof_system(self, proof_system: ChecksumAddress) -> Call[None]:
        return self._call("setProofSystem", (proof_system,), nothing)

    def set_treasury(self, treasury: ChecksumAddress) -> Call[None]:
        return self._call("setTreasury", (treasury,), nothing)

    def submit_proof_of_work(self, *, job_id: int, tokens_claimed: int, proof: bytes) -> Call[None]:
        return self._call("submitProofOfWork", (job_id, tokens_claimed, proof), nothing)

    def transfer_ownership(self, new_owner: ChecksumAddress) -> Call[None]:
        return self._call("transferOwnership", (new_owner,), nothing)

    def treasury(self) -> Call[ChecksumAddress]:
        return self._call("treasury", (), single)

    def treasury_balance(self, token: ChecksumAddress) -> Call[int]:
        return self._call("treasuryBalance", (token,), single)

    def trigger_session_timeout(self, job_id: int) -> Call[None]:
        return self._call("triggerSessionTimeout", (job_id,), nothing)

    def used_proofs(self, proof_hash: bytes) -> Call[bool]:
        return self._call("usedProofs", (proof_hash,), single)

    def user_session_count(self, requester: ChecksumAddress) -> Call[int]:
        return self._call("userSessionCount", (requester,), single)

    def user_session_page(self, *, requester: ChecksumAddress, offset: int, limit: int) -> Call[tuple[int, ...]]:
        return self._call("userSessionPage", (requester, offset, limit), single)

    def user_sessions(self, *, requester: ChecksumAddress, index: int) -> Call[int]:
        return self._call("userSessions", (requester, index), single)

    def withdraw_refund(self, token: ChecksumAddress) -> Call[None]:
        return self._call("withdrawRefund", (token,), nothing)

    def withdraw_refund_to(self, *, token: ChecksumAddress, recipient: ChecksumAddress) -> Call[None]:
        return self._call("withdrawRefundTo", (token, recipient), nothing)

    def withdraw_treasury(self, token: ChecksumAddress) -> Call[None]:
        return self._call("withdrawTreasury", (token,), nothing)
