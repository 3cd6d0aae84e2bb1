"""The marketplace of this repository's contracts, generation ``fabstir-host-1``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from eth_utils.crypto import keccak

from settlement.chain.adapter import Adapter, values_of
from settlement.chain.addresses import to_checksum_address
from settlement.chain.bindings import JobMarketplace, ProofSystem, errors, events
from settlement.chain.bindings.structs import SessionJob, SessionStatus
from settlement.chain.client import CallReverted, ChainClient
from settlement.chain.contracts import Call
from settlement.chain.deployment import HOST_GENERATION, Deployment
from settlement.chain.event_logs import index_of, position_of, topic_of
from settlement.chain.marketplace import (
    NATIVE_COIN,
    AcceptedClaim,
    Capabilities,
    EndedJob,
    JobOrder,
    MarketplaceJob,
    MarketplaceJobStatus,
    Refusal,
    Terms,
    UnsupportedGeneration,
)
from settlement.chain.reverts import CustomRevert

# UnknownJob and NotAssignedHost are tried again: the ledger holds jobs of this host only, but a node that is behind
# the job's block, or a reorg that takes a while to bring it back, knows none of them.
_REFUSALS = {
    "SessionNotActive": Refusal.PERMANENT,
    "TooFewTokens": Refusal.PERMANENT,
    "ExceedsDeposit": Refusal.PERMANENT,
    "ProofAlreadyUsed": Refusal.ALREADY_CLAIMED,
    "ClaimTooFast": Refusal.TOO_FAST,
    "DisputeWindowOpen": Refusal.DISPUTE_WINDOW,
}


class EscrowMarketplace(Adapter):
    """The marketplace of this repository: pays on each claim, closing claim of one token or more."""

    generation = HOST_GENERATION
    capabilities = Capabilities(
        pays_on_claim=True, closing_claim=True, signature_proof=False, minimum_claim=100, price_precision=1
    )

    REFUSALS = _REFUSALS
    NEEDED = (
        "sessionJobs",
        "submitProofOfWork",
        "completeSessionJobWithProof",
        "completeSessionJob",
        "triggerSessionTimeout",
        "feeBasisPoints",
        "disputeWindow",
        "expectedTokensPerSecond",
        "treasury",
        "MIN_PROVEN_TOKENS",
    )

    def __init__(self, deployment: Deployment) -> None:
        if deployment.host_earnings is None:
            raise UnsupportedGeneration("The deployment names no HostEarnings contract (CONTRACT_HOST_EARNINGS).")
        if deployment.proof_system is None:
            raise UnsupportedGeneration("The deployment names no ProofSystem contract (CONTRACT_PROOF_SYSTEM).")
        self._contract = JobMarketplace(deployment.job_marketplace)
        self._proofs = ProofSystem(deployment.proof_system)
        self._earnings = deployment.host_earnings.lower()
        super().__init__(self._contract, deployment)

    def terms(self, client: ChainClient) -> Terms:
        """The marketplace's settings as the chain states them now."""
        contract = self._contract
        fee, window, rate, treasury, minimum = values_of(
            client,
            [
                contract.fee_basis_points(),
                contract.dispute_window(),
                contract.expected_tokens_per_second(),
                contract.treasury(),
                contract.min_proven_tokens(),
            ],
        )
        return Terms(
            fee_basis_points=fee,
            dispute_window=timedelta(seconds=window),
            tokens_per_second=rate,
            treasury=treasury.lower(),
            minimum_claim=minimum,
        )

    def find_jobs(self, client: ChainClient, job_ids: Sequence[int]) -> list[MarketplaceJob | None]:
        """The jobs' rows in the order of the ids."""
        rows = [self._contract.session_jobs(job_id) for job_id in job_ids]
        rate, *answers = client.calls([self._contract.expected_tokens_per_second(), *rows])
        if isinstance(rate, Exception):
            raise rate
        return [self._job(answer, rate=rate) for answer in answers]

    def _job(self, row: SessionJob | Exception, *, rate: int) -> MarketplaceJob | None:
        if isinstance(row, CallReverted):
            revert = row.revert
            if isinstance(revert, CustomRevert) and isinstance(revert.error, errors.UnknownJob):
                return None
        if isinstance(row, Exception):
            raise row
        status = {
            SessionStatus.ACTIVE: MarketplaceJobStatus.ACTIVE,
            SessionStatus.COMPLETED: MarketplaceJobStatus.COMPLETED,
            SessionStatus.TIMED_OUT: MarketplaceJobStatus.TIMED_OUT,
        }[SessionStatus(row.status)]
        started = datetime.fromtimestamp(row.start_time, UTC)
        return MarketplaceJob(
            job_id=row.id,
            requester=row.requester.lower(),
            host=row.host.lower(),
            payment_token=row.payment_token.lower(),
            deposit=row.deposit,
            price_per_token=row.price_per_token,
            price_precision=self.capabilities.price_precision,
            tokens_per_second=rate,
            tokens_used=row.tokens_used,
            status=status,
            started_at=started,
            last_proof_at=datetime.fromtimestamp(row.last_proof_time, UTC),
            expires_at=started + timedelta(seconds=row.max_duration),
            idle_timeout_seconds=row.idle_timeout,
            paid_to_host=row.withdrawn_by_host,
            paid_to_treasury=row.paid_to_treasury,
            refunded=row.refunded_to_user,
        )

    def host_job_ids(self, client: ChainClient, *, host: str, start: int, limit: int) -> list[int]:
        """Up to ``limit`` ids of the host's jobs, oldest first, from the ``start``-th on."""
        page = self._contract.host_session_page(host=to_checksum_address(host), offset=start, limit=limit)
        job_ids: tuple[int, ...] = client.call(page)
        return list(job_ids)

    def accepts_prover(self, client: ChainClient, *, selector: bytes) -> bool:
        """Whether the proof system has a verifier for that prover."""
        return client.call(self._proofs.has_verifier(selector))

    def claim_hash(self, proof: bytes) -> str:
        """keccak-256 of the bytes."""
        return "0x" + keccak(proof).hex()

    def open_job(self, order: JobOrder) -> Call[int]:
        """What the depositor calls."""
        return self._contract.create_session_job_with_token(
            host=to_checksum_address(order.host),
            token=to_checksum_address(order.token),
            deposit=order.deposit,
            price_per_token=order.price_per_token,
            max_duration=int(order.max_duration.total_seconds()),
            proof_interval=order.claim_interval,
        )

    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]:
        """Claim ``tokens`` since the last claim."""
        return self._contract.submit_proof_of_work(job_id=job_id, tokens_claimed=tokens, proof=proof)

    def closing_claim(self, *, job_id: int, tokens: int, proof: bytes, reference: str) -> Call[None]:
        """Claim the last tokens and complete the job in one transaction."""
        return self._contract.complete_session_job_with_proof(
            job_id=job_id, tokens_claimed=tokens, proof=proof, conversation_cid=reference
        )

    def accepted_claims(self, logs: Iterable[Mapping[str, Any]]) -> list[AcceptedClaim]:
        """The claims among the logs of *one* transaction, each with the payments that follow it."""
        found: list[AcceptedClaim] = []
        for log in sorted(logs, key=index_of):
            topic = topic_of(log)
            ours = str(log["address"]).lower()
            if ours == self.addresses[0] and topic == events.ProofOfWork.topic:
                found.append(_claim_of(events.ProofOfWork.decode(log)))
            elif not found:
                continue
            elif ours == self.addresses[0] and topic == events.TreasuryCredited.topic:
                credit = events.TreasuryCredited.decode(log)
                found[-1] = replace(
                    found[-1],
                    token=credit.event.token.lower(),
                    treasury_amount=credit.event.amount,
                    treasury_position=position_of(credit),
                )
            elif ours == self._earnings and topic == events.EarningsCredited.topic:
                earned = events.EarningsCredited.decode(log)
                found[-1] = replace(
                    found[-1],
                    token=earned.event.token.lower(),
                    host_amount=earned.event.amount,
                    host_position=position_of(earned),
                )
        return found

    def ended_jobs(self, logs: Iterable[Mapping[str, Any]]) -> list[EndedJob]:
        """The jobs that the logs say have ended."""
        ended: list[EndedJob] = []
        for log in logs:
            if str(log["address"]).lower() != self.addresses[0]:
                continue
            topic = topic_of(log)
            if topic == events.SessionCompleted.topic:
                completed = events.SessionCompleted.decode(log)
                ended.append(_ended(completed, status=MarketplaceJobStatus.COMPLETED))
            elif topic == events.SessionTimedOut.topic:
                timed_out = events.SessionTimedOut.decode(log)
                ended.append(_ended(timed_out, status=MarketplaceJobStatus.TIMED_OUT))
        return ended


def _claim_of(log: Any) -> AcceptedClaim:
    return AcceptedClaim(
        job_id=log.event.job_id,
        host=log.event.host.lower(),
        tokens=log.event.tokens_claimed,
        proof_hash="0x" + log.event.proof_hash.hex(),
        token=NATIVE_COIN,
        host_amount=0,
        treasury_amount=0,
        position=position_of(log),
        host_position=None,
        treasury_position=None,
    )


def _ended(log: Any, *, status: MarketplaceJobStatus) -> EndedJob:
    return EndedJob(
        job_id=log.event.job_id,
        status=status,
        tokens=log.event.total_tokens_used,
        host_amount=log.event.host_earnings,
        refund=log.event.user_refund,
        settles=False,
        position=position_of(log),
    )
