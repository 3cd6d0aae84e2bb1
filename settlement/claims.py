"""Claims: drive checkpoints from counted tokens to money, one step at a time.

Guarantees that every function here can be run at any moment, by any number of workers, after any
crash: each looks for rows that are due and takes one guarded step. No network call is made inside a
database transaction, and a refusal of the contract is told apart from a chain that is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from jobs.models import Session, SessionState, TokenUsage
from settlement import checkpoints, earnings, policy
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import Call, CodecError
from settlement.chain.marketplaces import AcceptedClaim, Terms
from settlement.host_chain import HostChain
from settlement.models import (
    Checkpoint,
    CheckpointState,
    Receipt,
    Transaction,
    TransactionKind,
    TransactionState,
)
from settlement.proofs.prover import ProofRefused, ProverUnavailable
from settlement.proofs.registry import accepted_prover
from settlement.proofs.witness import Witness
from settlement.transaction_keys import claims_of_job
from settlement.txmanager import outbox

logger = logging.getLogger(__name__)

_PROVING_LEASE = timedelta(minutes=2)
_PROVER_PAUSE = timedelta(seconds=30)
_LONGEST_PAUSE = timedelta(minutes=10)

# Refusals that no waiting changes. Any other, an unexplained one above all, is tried again: giving up
# would turn a node's hiccup into lost money.
_FINAL_REVERTS = frozenset(
    {"UnknownJob", "SessionNotActive", "NotAssignedHost", "TooFewTokens", "ExceedsDeposit", "ProofAlreadyUsed"}
)
_FIRST_PAUSES = {"ClaimTooFast": timedelta(seconds=1), "DisputeWindowOpen": timedelta(seconds=5)}
_USUAL_FIRST_PAUSE = timedelta(seconds=10)


def seal_due(chain: HostChain) -> int:
    """Seal what the policy says is due; returns the number of new checkpoints."""
    rule = policy.SealingRule(
        threshold=settings.ENVIRONMENT.checkpoint_threshold,
        max_age=timedelta(seconds=settings.ENVIRONMENT.checkpoint_max_age_seconds),
    )
    candidates = Session.objects.unsealed().filter(
        deployment=chain.key, state__in=(SessionState.OPEN, SessionState.CLOSING)
    )
    sealed = 0
    terms: Terms | None = None
    for session in candidates.iterator():
        ending = session.state == SessionState.CLOSING
        if not ending and session.tokens_unsealed < chain.marketplace.capabilities.minimum_claim:
            continue
        # One claim of a job at a time: while it is on its way, tokens gather for the next.
        if session.checkpoints.unpaid().exists():
            continue
        terms = terms or chain.marketplace.terms(chain.client)
        decision = policy.seal(
            policy.Unsealed(
                tokens=session.tokens_unsealed,
                oldest_at=_oldest_unsealed(session),
                last_claim_at=session.last_claim_at or session.job_started_at or session.created_at,
                ending=ending and not _has_running_requests(session),
            ),
            now=timezone.now(),
            rule=rule,
            terms=terms,
            capabilities=chain.marketplace.capabilities,
        )
        if decision and checkpoints.seal(session, tokens=decision.tokens, closing=decision.closing):
            sealed += 1
    return sealed


def _oldest_unsealed(session: Session) -> datetime:
    row = TokenUsage.objects.filter(session=session, first_index__gte=session.tokens_sealed).first()
    return row.created_at if row else session.last_activity_at


def _has_running_requests(session: Session) -> bool:
    return session.requests.filter(state="running").exists()


def prove_due(chain: HostChain) -> int:
    """Prove sealed checkpoints; returns how many were proved."""
    now = timezone.now()
    mine = Checkpoint.objects.filter(session__deployment=chain.key)
    for lost in mine.due(CheckpointState.PROVING, now=now):
        checkpoints.move(
            lost.pk,
            from_state=CheckpointState.PROVING,
            to_state=CheckpointState.SEALED,
            reason="the worker that proved it ended",
        )
    proved = 0
    due = mine.filter(proof__isnull=True).due(CheckpointState.SEALED, CheckpointState.RETRY_AT, now=now)
    for checkpoint in due.select_related("session").order_by("id"):
        lease = timezone.now() + _PROVING_LEASE
        state = CheckpointState(checkpoint.state)
        if checkpoints.move(checkpoint.pk, from_state=state, to_state=CheckpointState.PROVING, retry_at=lease):
            checkpoint.refresh_from_db()
            proved += _prove(chain, checkpoint)
    return proved


def _prove(chain: HostChain, checkpoint: Checkpoint) -> bool:
    try:
        prover = accepted_prover(chain.client, chain.deployment)
        witness = witness_of(chain, checkpoint)
        proof = prover.prove(witness)
        prover.verify(proof, witness)
    except (ProverUnavailable, ChainUnavailable, NodeRefused, CallReverted, CodecError) as failure:
        until = timezone.now() + _pause(checkpoint, first=_PROVER_PAUSE)
        checkpoints.wait(checkpoint, until=until, reason=f"not proved: {failure}")
        logger.warning("%s not proved: %s", checkpoint, failure, extra={"event": "prover_unavailable"})
        return False
    except ProofRefused as refused:
        checkpoints.fail(checkpoint, reason=f"the prover's own proof does not verify: {refused}")
        return False
    return checkpoints.keep_proof(checkpoint, prover=prover.name, proof=proof.data, proof_hash=proof.hash)


def witness_of(chain: HostChain, checkpoint: Checkpoint) -> Witness:
    """What a checkpoint's proof is made from: the same at every try."""
    session = checkpoint.session
    assert session.job_id is not None  # noqa: S101 - only sessions with a job are sealed
    return Witness(
        chain_id=chain.deployment.chain_id,
        marketplace=chain.deployment.job_marketplace.lower(),
        job_id=session.job_id,
        host=session.host,
        checkpoint_index=checkpoint.index,
        from_token=checkpoint.from_token,
        tokens_claimed=checkpoint.tokens,
        timestamp_ms=int(checkpoint.created_at.timestamp() * 1000),
    )


def submit_due(chain: HostChain) -> int:
    """Put proved checkpoints that the contract would accept now into the outbox; returns how many."""
    due = (
        Checkpoint.objects.filter(session__deployment=chain.key, proof__isnull=False)
        .due(CheckpointState.PROVED, CheckpointState.RETRY_AT, now=timezone.now())
        .select_related("session")
        .order_by("id")
    )
    return sum(_submit(chain, checkpoint) for checkpoint in due)


def _submit(chain: HostChain, checkpoint: Checkpoint) -> bool:
    if chain.signer is None:
        return False
    session, state = checkpoint.session, CheckpointState(checkpoint.state)
    terms = chain.marketplace.terms(chain.client)
    since = session.last_claim_at or session.job_started_at or session.created_at
    earliest = terms.earliest_claim(checkpoint.tokens, since=since)
    if earliest > timezone.now():
        checkpoints.wait(checkpoint, until=earliest, reason="the marketplace's rate rule")
        return False
    call = claim_call(chain, checkpoint)
    try:
        chain.client.simulate(call, sender=chain.signer.address)
    except CallReverted as reverted:
        _refused(checkpoint, reverted)
        return False
    with transaction.atomic():
        row = outbox.enqueue(
            key=f"{claims_of_job(chain.key, session.job_id)}{checkpoint.index}:{checkpoint.retries}",
            kind=TransactionKind.CLOSING_CLAIM if checkpoint.closing else TransactionKind.CLAIM,
            call=call,
            chain_id=chain.deployment.chain_id,
            sender=chain.signer.address,
        )
        return checkpoints.move(checkpoint.pk, from_state=state, to_state=CheckpointState.QUEUED, transaction=row)


def claim_call(chain: HostChain, checkpoint: Checkpoint) -> Call[None]:
    """The contract call that claims a checkpoint: its own tokens, never a running total."""
    job_id = checkpoint.session.job_id
    assert job_id is not None and checkpoint.proof is not None  # noqa: S101 - proved checkpoints of jobs only
    if checkpoint.closing:
        return chain.marketplace.closing_claim(
            job_id=job_id,
            tokens=checkpoint.tokens,
            proof=bytes(checkpoint.proof),
            reference=completion_reference(checkpoint.session),
        )
    return chain.marketplace.claim(job_id=job_id, tokens=checkpoint.tokens, proof=bytes(checkpoint.proof))


def completion_reference(session: Session) -> str:
    """What this host writes as a completed job's conversation reference; it keeps no conversations."""
    return f"fabstir-host:session:{session.pk}"


def _refused(checkpoint: Checkpoint, reverted: CallReverted) -> None:
    """The contract refuses: give up if that is final, else wait."""
    name = reverted.revert.name
    if name in _FINAL_REVERTS:
        checkpoints.fail(checkpoint, reason=str(reverted.revert))
        logger.error(
            "%s refused for good: %s",
            checkpoint,
            reverted.revert,
            extra={"event": "claim_refused", "checkpoint_id": checkpoint.pk},
        )
    else:
        until = timezone.now() + _pause(checkpoint, first=_FIRST_PAUSES.get(name, _USUAL_FIRST_PAUSE))
        checkpoints.wait(checkpoint, until=until, reason=str(reverted.revert))


def _pause(checkpoint: Checkpoint, *, first: timedelta) -> timedelta:
    return min(_LONGEST_PAUSE, first * int(2 ** min(checkpoint.retries, 10)))


def follow_transactions(chain: HostChain) -> int:
    """Let checkpoints follow what became of their transactions; returns how many moved."""
    travelling = (
        Checkpoint.objects.filter(
            session__deployment=chain.key,
            state__in=(
                CheckpointState.QUEUED,
                CheckpointState.SENT,
                CheckpointState.MINED,
                CheckpointState.REORGED,
            ),
        )
        .select_related("session", "transaction")
        .order_by("id")
    )
    return sum(_follow(chain, checkpoint) for checkpoint in travelling)


def _follow(chain: HostChain, checkpoint: Checkpoint) -> bool:
    row = checkpoint.transaction
    assert row is not None  # noqa: S101 - a queued checkpoint has a transaction (constraint of that name)
    steps: dict[TransactionState, Callable[[], bool]] = {
        TransactionState.SENT: lambda: _advance(checkpoint, CheckpointState.SENT),
        TransactionState.MINED: lambda: _advance(checkpoint, CheckpointState.MINED),
        TransactionState.FINAL: lambda: _settle(chain, checkpoint, row),
        TransactionState.REVERTED: lambda: _reverted(chain, checkpoint, row),
        TransactionState.FAILED: lambda: _retry(checkpoint, reason=f"not sent: {row.reason}"),
    }
    step = steps.get(TransactionState(row.state))
    return step() if step else False


_ORDER = (CheckpointState.QUEUED, CheckpointState.SENT, CheckpointState.MINED)


def _advance(checkpoint: Checkpoint, target: CheckpointState) -> bool:
    """Step by step to ``target``; back to SENT, by way of REORGED, if the block is gone."""
    if checkpoint.state == target:
        return False
    if checkpoint.state == CheckpointState.MINED:
        return checkpoints.move(
            checkpoint.pk,
            from_state=CheckpointState.MINED,
            to_state=CheckpointState.REORGED,
            reason="block gone in a reorg",
        )
    if checkpoint.state == CheckpointState.REORGED:
        return checkpoints.move(checkpoint.pk, from_state=CheckpointState.REORGED, to_state=CheckpointState.SENT)
    start, end = _ORDER.index(CheckpointState(checkpoint.state)), _ORDER.index(target)
    for here, there in zip(_ORDER[start:end], _ORDER[start + 1 : end + 1], strict=True):
        if not checkpoints.move(checkpoint.pk, from_state=here, to_state=there):
            return False
        checkpoint.state = there
    return True


def _settle(chain: HostChain, checkpoint: Checkpoint, row: Transaction) -> bool:
    """The receipt is final: match the marketplace's event, then book."""
    if checkpoint.state == CheckpointState.REORGED:
        return _advance(checkpoint, CheckpointState.SENT)
    if checkpoint.state != CheckpointState.MINED and not _advance(checkpoint, CheckpointState.MINED):
        return False
    receipt = Receipt.objects.select_related("attempt").get(transaction=row)
    mined = chain.client.receipt(receipt.attempt.hash)
    if mined is None:
        return False
    claim = matching_claim(chain, checkpoint, chain.marketplace.accepted_claims(mined.logs))
    if claim is None:
        return checkpoints.fail(checkpoint, reason="mined without the marketplace's event for this claim")
    with transaction.atomic():
        confirmed = checkpoints.confirm(
            checkpoint,
            host_amount=claim.host_amount,
            treasury_amount=claim.treasury_amount,
            claimed_at=receipt.block_time,
        )
        if not confirmed:
            return False
        earnings.book_claim(claim, deployment=chain.key, session_id=checkpoint.session_id)
        earnings.book_gas(receipt, deployment=chain.key, session_id=checkpoint.session_id)
        if claim.host_position is not None:
            checkpoints.move(
                checkpoint.pk,
                from_state=CheckpointState.CONFIRMED,
                to_state=CheckpointState.SETTLED,
                reason="credited in HostEarnings",
            )
    logger.info(
        "%s confirmed: %d tokens, host %d, treasury %d",
        checkpoint,
        checkpoint.tokens,
        claim.host_amount,
        claim.treasury_amount,
        extra={"event": "claim_confirmed", "checkpoint_id": checkpoint.pk, "tx_hash": receipt.attempt.hash},
    )
    return True


def matching_claim(chain: HostChain, checkpoint: Checkpoint, claims: list[AcceptedClaim]) -> AcceptedClaim | None:
    """The event that states exactly this checkpoint: job, host, count and proof."""
    for claim in claims:
        if (claim.job_id, claim.host, claim.tokens, claim.proof_hash) == (
            checkpoint.session.job_id,
            chain.host,
            checkpoint.tokens,
            checkpoint.proof_hash,
        ):
            return claim
    return None


def _reverted(chain: HostChain, checkpoint: Checkpoint, row: Transaction) -> bool:
    """Mined with status 0: gas is gone, tokens are not. Simulation decides whether to try again."""
    receipt = Receipt.objects.select_related("attempt").get(transaction=row)
    with transaction.atomic():
        earnings.book_gas(receipt, deployment=chain.key, session_id=checkpoint.session_id)
        return _retry(checkpoint, reason=f"reverted: {receipt.revert_reason}")


def _retry(checkpoint: Checkpoint, *, reason: str) -> bool:
    return checkpoints.wait(
        checkpoint, until=timezone.now() + _pause(checkpoint, first=timedelta(seconds=2)), reason=reason
    )
