"""Proving: turn sealed checkpoints into proofs, under leases that a dead worker cannot keep.

Guarantees that a prover which takes longer than its lease keeps it for as long as it works, that one
which dies gives its checkpoint back when the lease runs out, and that a prover which is missing loses
nothing: the tokens stay claimable, and an alert says that none are being proved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import F, Min, Sum
from django.utils import timezone

from settlement import checkpoints
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from settlement.host_chain import HostChain
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState
from settlement.pauses import pause
from settlement.proofs.prover import Proof, ProofRefused, Prover, ProverUnavailable
from settlement.proofs.registry import accepted_prover
from settlement.proofs.witness import Witness

logger = logging.getLogger(__name__)

LEASE = timedelta(minutes=2)
RENEW_EVERY_SECONDS = LEASE.total_seconds() / 3
# A fast prover's proofs share their commits. Of a batch that a crash cuts off, this much work is repeated.
BATCH = 100
_BATCH_SECONDS = 1.0
_PROVER_PAUSE = timedelta(seconds=30)
# Proving takes seconds to minutes; nothing proved for so long is an outage.
NOTHING_PROVED_AFTER = timedelta(minutes=10)

_AWAY = (ProverUnavailable, ChainUnavailable, NodeRefused, CallReverted, CodecError)


def prove_due(chain: HostChain) -> int:
    """Prove sealed checkpoints; returns how many were proved."""
    now = timezone.now()
    mine = Checkpoint.objects.filter(session__deployment=chain.key)
    give_back_lost(chain)
    due = list(
        mine.filter(proof__isnull=True)
        .due(CheckpointState.SEALED, CheckpointState.RETRY_AT, now=now)
        .select_related("session")
        .order_by("id")
    )
    if not due:
        return 0
    try:
        prover = accepted_prover(chain.client, chain.marketplace)
    except _AWAY as failure:
        for checkpoint in due:
            _put_off(checkpoint, failure)
        return 0
    return _prove_all(chain, due, prover=prover)


def _prove_all(chain: HostChain, due: Sequence[Checkpoint], *, prover: Prover) -> int:
    """In batches of about ``_BATCH_SECONDS``: a slow prover takes one, and leaves the rest to other workers."""
    proved, start, size = 0, 0, 1
    while batch := due[start : start + size]:
        started = time.monotonic()
        proved += _take_and_prove(chain, batch, prover=prover)
        start += size
        each = (time.monotonic() - started) / len(batch)
        size = max(1, min(BATCH, int(_BATCH_SECONDS / max(each, _BATCH_SECONDS / BATCH))))
    return proved


def give_back_lost(chain: HostChain) -> list[Checkpoint]:
    """Checkpoints whose lease ran out go back to where another worker finds them; returns them."""
    lost = Checkpoint.objects.filter(session__deployment=chain.key).due(CheckpointState.PROVING, now=timezone.now())
    return [
        checkpoint
        for checkpoint in lost.select_related("session")
        if checkpoints.move(
            checkpoint.pk,
            from_state=CheckpointState.PROVING,
            to_state=CheckpointState.SEALED,
            reason="the worker that proved it ended",
        )
    ]


def _take_and_prove(chain: HostChain, batch: Sequence[Checkpoint], *, prover: Prover) -> int:
    taken: list[Checkpoint] = []
    for state in (CheckpointState.SEALED, CheckpointState.RETRY_AT):
        waiting = {row.pk: row for row in batch if row.state == state}
        moved = checkpoints.move_all(
            {pk: {} for pk in waiting},
            from_state=state,
            to_state=CheckpointState.PROVING,
            retry_at=timezone.now() + LEASE,
        )
        taken += [row for pk, row in waiting.items() if pk in moved]
    if not taken:
        return 0
    for checkpoint in taken:
        checkpoint.state = CheckpointState.PROVING
    proofs: dict[int, dict[str, object]] = {}
    with _Lease([checkpoint.pk for checkpoint in taken]):
        for checkpoint in taken:
            proof = _prove(chain, checkpoint, prover=prover)
            if proof is not None:
                proof_hash = chain.marketplace.claim_hash(proof.data)
                proofs[checkpoint.pk] = {"prover": prover.name, "proof": proof.data, "proof_hash": proof_hash}
    return len(checkpoints.keep_proofs(proofs))


def _prove(chain: HostChain, checkpoint: Checkpoint, *, prover: Prover) -> Proof | None:
    try:
        witness = witness_of(chain, checkpoint)
        proof = prover.prove(witness)
        prover.verify(proof, witness)
    except _AWAY as failure:
        _put_off(checkpoint, failure)
        return None
    except ProofRefused as refused:
        checkpoints.fail(checkpoint, reason=f"the prover's own proof does not verify: {refused}")
        logger.error(
            "%s: the proof made for it does not verify: %s",
            checkpoint,
            refused,
            extra={"event": "proof_refused", "checkpoint_id": checkpoint.pk},
        )
        return None
    return proof


def _put_off(checkpoint: Checkpoint, failure: Exception) -> None:
    until = timezone.now() + pause(checkpoint.pk, tries=checkpoint.retries, first=_PROVER_PAUSE)
    checkpoints.wait(checkpoint, until=until, reason=f"not proved: {failure}")
    logger.warning("%s not proved: %s", checkpoint, failure, extra={"event": "prover_unavailable"})


class _Lease:
    """Renews the lease of checkpoints from a thread of its own while a prover works."""

    def __init__(self, checkpoint_ids: Sequence[int]) -> None:
        self._checkpoint_ids = checkpoint_ids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="prover-lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._done.wait(RENEW_EVERY_SECONDS):
            try:
                renewed = Checkpoint.objects.filter(pk__in=self._checkpoint_ids, state=CheckpointState.PROVING).update(
                    retry_at=timezone.now() + LEASE
                )
            finally:
                connection.close()
            if not renewed:
                return


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


def watch_prover(chain: HostChain) -> datetime | None:
    """Raise the alert ``nothing_proved`` if tokens wait and none were proved for ``NOTHING_PROVED_AFTER``.

    Returns since when the oldest of them waits, ``None`` if all is well.
    """
    silent_since = timezone.now() - NOTHING_PROVED_AFTER
    waiting = Checkpoint.objects.filter(
        session__deployment=chain.key,
        proof__isnull=True,
        state__in=(CheckpointState.SEALED, CheckpointState.PROVING, CheckpointState.RETRY_AT),
        created_at__lt=silent_since,
    ).aggregate(tokens=Sum(F("to_token") - F("from_token")), since=Min("created_at"))
    if not waiting["tokens"]:
        return None
    if CheckpointEvent.objects.filter(to_state=CheckpointState.PROVED, at__gte=silent_since).exists():
        return None
    since: datetime = waiting["since"]
    logger.error(
        "%d tokens wait for a proof since %s and none was made for %s: is a prover installed and accepted?",
        waiting["tokens"],
        since.isoformat(),
        NOTHING_PROVED_AFTER,
        extra={"event": "nothing_proved", "tokens": waiting["tokens"]},
    )
    return since
