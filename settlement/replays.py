"""Replays: a claim whose proof the marketplace has seen before, and the event that says so.

A send whose answer was lost may have been mined all the same; its replay is then refused as already
claimed. Guarantees that such a claim is confirmed from the marketplace's own event, once that is final,
and never from the refusal; that nothing is called paid whose event states anything else; and that none is
given up on the word of a node that is behind what is known of the chain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from settlement import checkpoints, earnings
from settlement.chain.client import LOG_RANGE_BLOCKS, Block, ChainClient
from settlement.chain.marketplace import AcceptedClaim
from settlement.host_chain import HostChain
from settlement.models import Attempt, ChainCursor, Checkpoint, CheckpointState, Transaction
from settlement.pauses import pause
from settlement.txmanager.finality import final_height

logger = logging.getLogger(__name__)

_NOT_FINAL_PAUSE = timedelta(seconds=10)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedClaim:
    """A checkpoint and the final event that states its claim, in a block of ``claimed_at``."""

    checkpoint: Checkpoint
    claim: AcceptedClaim
    claimed_at: datetime


def book(chain: HostChain, stated: Sequence[StatedClaim]) -> list[StatedClaim]:
    """Mined checkpoints whose events are final: confirm them, and settle those that were paid with their claims.

    All in one commit; returns those that were not confirmed before.
    """
    pays_now = chain.marketplace.capabilities.pays_on_claim
    with transaction.atomic():
        confirmed = checkpoints.confirm_all(
            [
                checkpoints.Acceptance(
                    checkpoint=each.checkpoint,
                    claimed_at=each.claimed_at,
                    host_amount=each.claim.host_amount if pays_now else None,
                    treasury_amount=each.claim.treasury_amount if pays_now else None,
                )
                for each in stated
            ]
        )
        booked = [each for each in stated if each.checkpoint.pk in confirmed]
        if pays_now and booked:
            _book_payments(chain, booked)
    return booked


def _book_payments(chain: HostChain, stated: Sequence[StatedClaim]) -> None:
    movements = [
        movement
        for each in stated
        for movement in earnings.movements_of_claim(
            each.claim, deployment=chain.key, session_id=each.checkpoint.session_id, at=each.claimed_at
        )
    ]
    earnings.book(movements)
    checkpoints.move_all(
        {each.checkpoint.pk: {} for each in stated},
        from_state=CheckpointState.CONFIRMED,
        to_state=CheckpointState.SETTLED,
        reason="credited in HostEarnings",
    )


def give_up(checkpoint: Checkpoint, *, reason: str) -> bool:
    """No try will ever succeed: fail it, and tell the operator."""
    failed = checkpoints.fail(checkpoint, reason=reason)
    if failed:
        logger.error(
            "%s refused for good: %s",
            checkpoint,
            reason,
            extra={"event": "claim_refused", "checkpoint_id": checkpoint.pk},
        )
    return failed


def resolve(chain: HostChain, checkpoint: Checkpoint, *, stated: str) -> bool:
    """The marketplace will never accept this claim: because it has, as an event would say, or give it up.

    A claim that closed the job, or used up the deposit, is refused for that when it is replayed, and not
    for its proof: every refusal for good is looked into.
    """
    claim, head = _find(chain, checkpoint)
    if claim is None and head < _newest_known(chain):
        return _wait(checkpoint, reason=f"{stated}; the node that answers is behind and may not have the event yet")
    if claim is None:
        return give_up(checkpoint, reason=f"{stated}; no event on the chain states this claim")
    if _follow_own(checkpoint, claim):
        return True
    block = _final_block(chain, claim)
    if block is None:
        return _wait(checkpoint, reason="claimed already, in a block that is not final yet")
    still = checkpoints.as_read([checkpoint])
    with transaction.atomic():
        for here, there in (
            (CheckpointState.QUEUED, CheckpointState.SENT),
            (CheckpointState.REORGED, CheckpointState.SENT),
        ):
            checkpoints.move(checkpoint.pk, from_state=here, to_state=there, reason="found on the chain", still=still)
        checkpoint.state = CheckpointState.SENT
        if not checkpoints.mine(checkpoint, block_time=block.time, reason="found on the chain"):
            return False
        return bool(book(chain, [StatedClaim(checkpoint=checkpoint, claim=claim, claimed_at=block.time)]))


def _follow_own(checkpoint: Checkpoint, claim: AcceptedClaim) -> bool:
    """If an earlier transaction of this node made the claim, that one is the checkpoint's again."""
    attempt = Attempt.objects.filter(hash=claim.position.transaction_hash).select_related("transaction").first()
    if attempt is None or attempt.transaction_id == checkpoint.transaction_id:
        return False
    other: Transaction = attempt.transaction
    relinked = Checkpoint.objects.filter(
        pk=checkpoint.pk, state=checkpoint.state, transaction=checkpoint.transaction
    ).update(transaction=other, reason=f"claimed by {other.key}")
    return bool(relinked)


def _wait(checkpoint: Checkpoint, *, reason: str) -> bool:
    until = timezone.now() + pause(checkpoint.pk, tries=checkpoint.retries, first=_NOT_FINAL_PAUSE)
    return checkpoints.wait(checkpoint, until=until, reason=reason)


def _final_block(chain: HostChain, claim: AcceptedClaim) -> Block | None:
    """The block of a claim's event, once it is final; ``None`` until then, or if the block is gone."""
    number = claim.position.block_number

    def read(node: ChainClient) -> Block | None:
        return node.block(number) if number <= final_height(node, limits=chain.limits) else None

    block = chain.client.on_one_node(read)
    return block if block is not None and "0x" + block.hash.hex() == claim.position.block_hash.lower() else None


def _find(chain: HostChain, checkpoint: Checkpoint) -> tuple[AcceptedClaim | None, int]:
    """Search the marketplace's events since the job's start, all at one node; the claim and that node's head."""
    since = checkpoint.session.job_started_at or checkpoint.created_at

    def search(node: ChainClient) -> tuple[AcceptedClaim | None, int]:
        head = node.head().number
        for start in range(first_block_since(node, since, head=head), head + 1, LOG_RANGE_BLOCKS):
            end = min(start + LOG_RANGE_BLOCKS - 1, head)
            logs = node.logs(addresses=chain.marketplace.addresses, from_block=start, to_block=end)
            claim = _claim_among(chain, checkpoint, logs)
            if claim is not None:
                return claim, head
        return None, head

    return chain.client.on_one_node(search)


def _claim_among(chain: HostChain, checkpoint: Checkpoint, logs: Sequence[Mapping[str, Any]]) -> AcceptedClaim | None:
    for transaction_hash in dict.fromkeys(str(log["transactionHash"]) for log in logs):
        together = [log for log in logs if str(log["transactionHash"]) == transaction_hash]
        found = matching_claim(chain, checkpoint, chain.marketplace.accepted_claims(together))
        if found is not None:
            return found
    return None


def _newest_known(chain: HostChain) -> int:
    """The newest block that any node told this process of, or that the indexer has read."""
    cursor = ChainCursor.objects.filter(deployment=chain.key).first()
    return max(newest_head_told(chain.client), -1 if cursor is None else cursor.block_number)


def newest_head_told(client: ChainClient) -> int:
    """The highest of the heads that the nodes last told; -1 if none has."""
    return max((state.last_block for state in client.endpoints() if state.last_block is not None), default=-1)


def first_block_since(client: ChainClient, moment: datetime, *, head: int) -> int:
    """The number of the first block that is not older than ``moment``, by halving."""
    low, high = 0, head
    while low < high:
        middle = (low + high) // 2
        block = client.block(middle)
        if block is not None and block.time >= moment:
            high = middle
        else:
            low = middle + 1
    return low
