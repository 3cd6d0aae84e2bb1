"""The marketplace of the mission documents, generation ``mission-2025-09``.

Guarantees that its quirks stay here: a job that does not exist reads as active without a host, a time-out
announces itself as a completion first, the idle time is three times the proof interval in seconds, and
nobody is paid before the job ends. The contract itself is not this repository's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from eth_utils.crypto import keccak

from settlement.chain.adapter import values_of
from settlement.chain.addresses import to_checksum_address
from settlement.chain.bindings import MissionJobMarketplace
from settlement.chain.bindings.mission_job_marketplace import (
    ProofSubmitted,
    SessionCompleted,
    SessionJob,
    SessionTimedOut,
)
from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call
from settlement.chain.deployment import MISSION_GENERATION, Deployment
from settlement.chain.marketplace import (
    Capabilities,
    JobOrder,
    MarketplaceJob,
    Refusal,
    Terms,
)
from settlement.chain.paid_at_end import NO_ADDRESS, PaidAtEnd, paid_to_treasury, status_of

# A literal of the contract, which states it nowhere.
TOKENS_PER_SECOND = 10

# "Only host can submit proof" is tried again: the ledger holds jobs of this host only, but a node that is behind
# the job's block has no host for them.
_REFUSALS = {
    "Session not active": Refusal.PERMANENT,
    "Must claim minimum tokens": Refusal.PERMANENT,
    "Exceeds deposit": Refusal.PERMANENT,
    "Unauthorized": Refusal.PERMANENT,
    "Proof already submitted": Refusal.ALREADY_CLAIMED,
    "Excessive tokens claimed": Refusal.TOO_FAST,
    "Must wait dispute window": Refusal.DISPUTE_WINDOW,
}


class MissionMarketplace(PaidAtEnd):
    """Pays at completion; no claim below 100 tokens, hence no closing claim."""

    generation = MISSION_GENERATION
    capabilities = Capabilities(
        pays_on_claim=False, closing_claim=False, signature_proof=False, minimum_claim=100, price_precision=1
    )

    REFUSALS = _REFUSALS
    NEEDED = (
        "sessionJobs",
        "hostSessions",
        "submitProofOfWork",
        "completeSessionJob",
        "triggerSessionTimeout",
        "FEE_BASIS_POINTS",
        "DISPUTE_WINDOW",
        "treasuryAddress",
        "MIN_PROVEN_TOKENS",
    )
    CLAIMED, COMPLETED, TIMED_OUT = ProofSubmitted, SessionCompleted, SessionTimedOut

    def __init__(self, deployment: Deployment) -> None:
        self._contract = MissionJobMarketplace(deployment.job_marketplace)
        super().__init__(self._contract, deployment)

    def terms(self, client: ChainClient) -> Terms:
        """The marketplace's settings, of which the rate is known and not read."""
        contract = self._contract
        fee, window, treasury, minimum = values_of(
            client,
            [
                contract.fee_basis_points(),
                contract.dispute_window(),
                contract.treasury_address(),
                contract.min_proven_tokens(),
            ],
        )
        return Terms(
            fee_basis_points=fee,
            dispute_window=timedelta(seconds=window),
            tokens_per_second=TOKENS_PER_SECOND,
            treasury=treasury.lower(),
            minimum_claim=minimum,
        )

    def find_jobs(self, client: ChainClient, job_ids: Sequence[int]) -> list[MarketplaceJob | None]:
        """The jobs' rows in the order of the ids."""
        rows: list[SessionJob] = values_of(client, [self._contract.session_jobs(job_id) for job_id in job_ids])
        return [None if row.requester == NO_ADDRESS else self._job(row) for row in rows]

    def _job(self, row: SessionJob) -> MarketplaceJob:
        status = status_of(row.status)
        started = datetime.fromtimestamp(row.start_time, UTC)
        return MarketplaceJob(
            job_id=row.id,
            requester=row.requester.lower(),
            host=row.host.lower(),
            payment_token=row.payment_token.lower(),
            deposit=row.deposit,
            price_per_token=row.price_per_token,
            price_precision=self.capabilities.price_precision,
            tokens_per_second=TOKENS_PER_SECOND,
            tokens_used=row.tokens_used,
            status=status,
            started_at=started,
            last_proof_at=datetime.fromtimestamp(row.last_proof_time, UTC),
            expires_at=started + timedelta(seconds=row.max_duration),
            idle_timeout_seconds=3 * row.proof_interval,
            paid_to_host=row.withdrawn_by_host,
            paid_to_treasury=paid_to_treasury(
                status, deposit=row.deposit, host=row.withdrawn_by_host, refund=row.refunded_to_user
            ),
            refunded=row.refunded_to_user,
        )

    def host_session(self, *, host: str, index: int) -> Call[int]:
        """Asks for the id of the host's job of that number; refused beyond the last."""
        return self._contract.host_sessions(host=to_checksum_address(host), index=index)

    def accepts_prover(self, client: ChainClient, *, selector: bytes) -> bool:
        """Any: the proof system looks at a proof's length and first 32 bytes only."""
        return True

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
