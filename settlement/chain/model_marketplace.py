"""The marketplace in which a session names its model, generation ``model-2026-02``.

Guarantees that its quirks stay here: a job that does not exist reads as active without a host, a time-out
announces itself as a completion first, a price is for 1000 tokens, the rate is the model's own, the first
claim must reach the job's proof interval, only a proof's hash and its content id go on the chain, and nobody
is paid before the job ends. The contract itself is not this repository's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from settlement.chain.adapter import values_of
from settlement.chain.addresses import to_checksum_address
from settlement.chain.bindings import ModelJobMarketplace, ModelRateLimits
from settlement.chain.bindings.model_job_marketplace import (
    ProofSubmitted,
    SessionCompleted,
    SessionJob,
    SessionTimedOut,
)
from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call
from settlement.chain.deployment import MODEL_GENERATION, Deployment
from settlement.chain.marketplace import (
    Capabilities,
    JobOrder,
    MarketplaceJob,
    Refusal,
    Terms,
    UnsupportedGeneration,
)
from settlement.chain.paid_at_end import NO_ADDRESS, PaidAtEnd, paid_to_treasury, status_of

# CIDv1, raw bytes, sha2-256 of 32 bytes: what precedes the digest.
_CID_PREFIX = bytes([0x01, 0x55, 0x12, 0x20])
# The longest that the contract allows.
_PROOF_TIMEOUT_SECONDS = 3600
# This node publishes no differences between conversations; the contract takes any string.
_NO_DELTA = ""
_NO_MODEL = bytes(32)

# An unexplained refusal is tried again: giving up would turn a node's hiccup into lost money. So is "Low
# first", of a claim whose predecessor an operator may still resume: once there was a claim it is accepted.
# And so is "Not host": the ledger holds jobs of this host only, but a node that is behind has no host for them.
_REFUSALS = {
    "Not active": Refusal.PERMANENT,
    "Min tokens": Refusal.PERMANENT,
    "Over dep": Refusal.PERMANENT,
    "Not depositor or host": Refusal.PERMANENT,
    "Only host/depositor": Refusal.PERMANENT,
    "Proof already used": Refusal.ALREADY_CLAIMED,
    "Too many": Refusal.TOO_FAST,
    "Dispute wait": Refusal.DISPUTE_WINDOW,
}


class ModelMarketplace(PaidAtEnd):
    """Pays at completion; no claim below 100 tokens, hence no closing claim."""

    generation = MODEL_GENERATION
    capabilities = Capabilities(
        pays_on_claim=False, closing_claim=False, signature_proof=False, minimum_claim=100, price_precision=1000
    )

    REFUSALS = _REFUSALS
    NEEDED = (
        "sessionJobs",
        "sessionModel",
        "hostSessions",
        "submitProofOfWork",
        "completeSessionJob",
        "triggerSessionTimeout",
        "feeBasisPoints",
        "disputeWindow",
        "treasuryAddress",
        "MIN_PROVEN_TOKENS",
    )
    CLAIMED, COMPLETED, TIMED_OUT = ProofSubmitted, SessionCompleted, SessionTimedOut

    def __init__(self, deployment: Deployment) -> None:
        if deployment.model_registry is None:
            raise UnsupportedGeneration("The deployment names no ModelRegistry contract (CONTRACT_MODEL_REGISTRY).")
        self._contract = ModelJobMarketplace(deployment.job_marketplace)
        self._rates = ModelRateLimits(deployment.model_registry)
        super().__init__(self._contract, deployment)

    def terms(self, client: ChainClient) -> Terms:
        """The marketplace's settings; the rate is that of a model without its own."""
        contract = self._contract
        fee, window, treasury, minimum, limit = values_of(
            client,
            [
                contract.fee_basis_points(),
                contract.dispute_window(),
                contract.treasury_address(),
                contract.min_proven_tokens(),
                self._rates.get_model_rate_limit(_NO_MODEL),
            ],
        )
        return Terms(
            fee_basis_points=fee,
            dispute_window=timedelta(seconds=window),
            tokens_per_second=_expected_rate(limit),
            treasury=treasury.lower(),
            minimum_claim=minimum,
        )

    def find_jobs(self, client: ChainClient, job_ids: Sequence[int]) -> list[MarketplaceJob | None]:
        """The jobs' rows in the order of the ids."""
        rows: list[SessionJob] = values_of(client, [self._contract.session_jobs(job_id) for job_id in job_ids])
        models: list[bytes] = values_of(client, [self._contract.session_model(job_id) for job_id in job_ids])
        distinct = sorted(set(models))
        limits = values_of(client, [self._rates.get_model_rate_limit(model) for model in distinct])
        limit_of = dict(zip(distinct, limits, strict=True))
        return [
            None if row.depositor == NO_ADDRESS else self._job(row, limit=limit_of[model])
            for row, model in zip(rows, models, strict=True)
        ]

    def _job(self, row: SessionJob, *, limit: int) -> MarketplaceJob:
        status = status_of(row.status)
        started = datetime.fromtimestamp(row.start_time, UTC)
        return MarketplaceJob(
            job_id=row.id,
            requester=row.depositor.lower(),
            host=row.host.lower(),
            payment_token=row.payment_token.lower(),
            deposit=row.deposit,
            price_per_token=row.price_per_token,
            price_precision=self.capabilities.price_precision,
            tokens_per_second=_expected_rate(limit),
            tokens_used=row.tokens_used,
            status=status,
            started_at=started,
            last_proof_at=datetime.fromtimestamp(row.last_proof_time, UTC),
            expires_at=started + timedelta(seconds=row.max_duration),
            idle_timeout_seconds=row.proof_timeout_window,
            paid_to_host=row.withdrawn_by_host,
            paid_to_treasury=paid_to_treasury(
                status, deposit=row.deposit, host=row.withdrawn_by_host, refund=row.refunded_to_user
            ),
            refunded=row.refunded_to_user,
            first_claim_tokens=row.proof_interval,
            dispute_window_from=datetime.fromtimestamp(row.last_proof_time, UTC),
        )

    def host_session(self, *, host: str, index: int) -> Call[int]:
        """Asks for the id of the host's job of that number; refused beyond the last."""
        return self._contract.host_sessions(host=to_checksum_address(host), index=index)

    def accepts_prover(self, client: ChainClient, *, selector: bytes) -> bool:
        """Any: the contract never sees a proof, only its hash."""
        return True

    def claim_hash(self, proof: bytes) -> str:
        """sha-256 of the bytes, as hosts of that generation take it."""
        return "0x" + hashlib.sha256(proof).hexdigest()

    def open_job(self, order: JobOrder) -> Call[int]:
        """What the depositor calls."""
        return self._contract.create_session_job_for_model_with_token(
            host=to_checksum_address(order.host),
            model_id=order.model_id,
            token=to_checksum_address(order.token),
            deposit=order.deposit,
            price_per_token=order.price_per_token,
            max_duration=int(order.max_duration.total_seconds()),
            proof_interval=order.claim_interval,
            proof_timeout_window=_PROOF_TIMEOUT_SECONDS,
        )

    def claim(self, *, job_id: int, tokens: int, proof: bytes) -> Call[None]:
        """Claim ``tokens`` since the last claim, by the proof's hash and content id."""
        return self._contract.submit_proof_of_work(
            job_id=job_id,
            tokens_claimed=tokens,
            proof_hash=hashlib.sha256(proof).digest(),
            proof_cid=content_id(proof),
            delta_cid=_NO_DELTA,
        )


def content_id(proof: bytes) -> str:
    """The CIDv1 (raw, sha2-256, base32) by which a content-addressed store would keep the proof."""
    encoded = base64.b32encode(_CID_PREFIX + hashlib.sha256(proof).digest())
    return "b" + encoded.decode().rstrip("=").lower()


def _expected_rate(limit: int) -> int:
    """Tokens per second, of which the rate rule allows twice: that generation states the limit itself."""
    return max(1, limit // 2)
