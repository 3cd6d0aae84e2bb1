"""Sending: stored bytes to a node, and what its answer changes in the table.

Guarantees that only committed bytes are sent, the same bytes again after any answer that is no
decision (invariants 2 and 9), and that no answer takes or frees a nonce. Signs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce
from django.utils import timezone
from hexbytes import HexBytes

from settlement.chain.client import ChainClient, ChainUnavailable, NodeRefused
from settlement.models import Attempt, AttemptState, Transaction, TransactionEvent, TransactionState
from settlement.txmanager import events, senders
from settlement.txmanager.outcomes import LEFT_THE_NODE, PRICED_TOO_LOW, SendOutcome, classify
from settlement.txmanager.turn import Turn

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = timedelta(minutes=10)
BATCH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a node said to an attempt; ``words`` are its own."""

    attempt: Attempt
    outcome: SendOutcome
    words: str

    @property
    def left(self) -> bool:
        """Whether receipts tell the rest."""
        return self.outcome in LEFT_THE_NODE


def send(client: ChainClient, attempts: Sequence[Attempt]) -> list[Answer]:
    """Hand stored bytes to a node, in their order. Never raises for a node's answer or silence."""
    try:
        refusals = client.send_raws([bytes(HexBytes(attempt.raw)) for attempt in attempts])
    except NodeRefused as refused:
        return [_answer(attempt, refused) for attempt in attempts]
    except ChainUnavailable as away:
        return [Answer(attempt=attempt, outcome=SendOutcome.UNAVAILABLE, words=str(away)) for attempt in attempts]
    return [_answer(attempt, refusal) for attempt, refusal in zip(attempts, refusals, strict=True)]


def _answer(attempt: Attempt, refusal: NodeRefused | None) -> Answer:
    if refusal is None:
        return Answer(attempt=attempt, outcome=SendOutcome.ACCEPTED, words="")
    # JSON-RPC has no code for "slow down"; gateways use HTTP's.
    outcome = SendOutcome.RATE_LIMITED if refusal.code in (429, -32005) else classify(refusal.message)
    return Answer(attempt=attempt, outcome=outcome, words=refusal.message)


def hand_over(turn: Turn, attempts: Sequence[Attempt], *, head: int) -> tuple[int, bool]:
    """Send attempts in nonce order; how many left, and whether all did. Raises ``SenderPaused``.

    The first goes alone: what stops it (no money, no node, a price too low) stops all behind it, and
    they are better not sent than sent behind a gap.
    """
    left = 0
    for start, end in ((0, 1), (1, len(attempts))):
        part = attempts[start:end]
        if not part:
            continue
        answers = send(turn.client, part)
        record(answers, head=head)
        left += sum(answer.left for answer in answers)
        refused = [answer for answer in answers if not answer.left]
        for answer in refused:
            _react(turn, answer)
        if refused:
            return left, False
    return left, True


def record(answers: Sequence[Answer], *, head: int | None) -> None:
    """Write down what the answers were; what left is ``sent`` from here on."""
    now = timezone.now()
    with transaction.atomic():
        for outcome, words in dict.fromkeys((answer.outcome, answer.words) for answer in answers):
            same = [answer for answer in answers if (answer.outcome, answer.words) == (outcome, words)]
            sent = Attempt.objects.filter(pk__in=[answer.attempt.pk for answer in same])
            sent.update(
                sends=F("sends") + 1,
                outcome=outcome,
                error=words[:500],
                sent_at=now,
                sent_block=Coalesce("sent_block", head),
            )
            if outcome in LEFT_THE_NODE:
                sent.filter(state=AttemptState.SIGNED).update(state=AttemptState.SENT)
                Transaction.objects.filter(
                    pk__in=[answer.attempt.transaction_id for answer in same], state=TransactionState.IN_PROGRESS
                ).update(state=TransactionState.SENT, reason="", retry_at=None)
    for answer in answers:
        level = logging.INFO if answer.left else logging.WARNING
        extra = {"event": "transaction_sent" if answer.left else "send_refused", "tx_hash": answer.attempt.hash}
        logger.log(level, "sent nonce %s: %s %s", answer.attempt.nonce, answer.outcome, answer.words[:200], extra=extra)


def _react(turn: Turn, answer: Answer) -> None:
    """What a refusal means for the row and its sender. The nonce and the bytes stay."""
    row, reason = answer.attempt.transaction, f"{answer.outcome}: {answer.words}"
    put_off(row, reason=reason)
    if answer.outcome == SendOutcome.INSUFFICIENT_FUNDS:
        raise senders.pause(turn.lease, reason=f"cannot pay for gas: {answer.words}", event="insufficient_funds")
    if answer.outcome == SendOutcome.NONCE_TOO_HIGH:
        # The node misses what comes before: that goes first, without waiting for its time.
        Attempt.objects.filter(
            transaction__in=turn.rows.filter(state=TransactionState.SENT), state=AttemptState.SENT
        ).update(sent_at=timezone.now() - turn.limits.resend_after)
    if answer.outcome == SendOutcome.FATAL:
        _give_up(row, reason=reason)


def _give_up(row: Transaction, *, reason: str) -> None:
    """Have a transaction that no node will ever take replaced by nothing, so that it blocks nobody.

    The bytes were handed over, so the nonce is not simply free again (invariant 3): whichever of the two
    is mined decides.
    """
    with transaction.atomic():
        asked = Transaction.objects.filter(pk=row.pk, cancel_requested_at__isnull=True).update(
            cancel_requested_at=timezone.now(), retry_at=None
        )
        if asked:
            events.record(row, TransactionEvent.What.REFUSED, actor=events.BROADCASTER, reason=reason)
    logger.error("%s is refused for good: %s", row.key, reason, extra={"event": "transaction_refused"})


def put_off(row: Transaction, *, reason: str) -> None:
    """Try again later, later each time. The nonce and the bytes stay."""
    pause = min(_LONGEST_PAUSE, timedelta(seconds=2 ** min(row.retries, 10)))
    # Spreads rows that failed together; by the row's id, so that the same history gives the same times.
    pause -= pause * (row.pk * 7919 % 8) / 100
    Transaction.objects.filter(pk=row.pk).update(
        retries=F("retries") + 1, retry_at=timezone.now() + pause, reason=reason[:500]
    )
    logger.warning("%s put off for %s: %s", row.key, pause, reason, extra={"event": "transaction_put_off"})


def has_to_wait(row: Transaction) -> bool:
    """Whether the row was put off and its time has not come."""
    return row.retry_at is not None and row.retry_at > timezone.now()


def resend_lost(turn: Turn, rows: Sequence[Transaction]) -> None:
    """Send again what nobody has mined for a while: the same bytes, the newest attempt of each nonce.

    If a node refuses the newest, the ones before it go again as well: one of them may be what it takes.
    """
    due = timezone.now() - turn.limits.resend_after
    stale = [
        attempts
        for row in rows
        if row.state == TransactionState.SENT
        and (attempts := list(row.attempts.all()))
        and (attempts[-1].sent_at is None or attempts[-1].sent_at <= due)
    ]
    while stale:
        answers = send(turn.client, [attempts[-1] for attempts in stale])
        record(answers, head=None)
        for answer in answers:
            if answer.outcome in PRICED_TOO_LOW:
                put_off(answer.attempt.transaction, reason=f"{answer.outcome}: {answer.words}")
        again = [(answer, attempts[:-1]) for answer, attempts in zip(answers, stale, strict=True)]
        stale = [older for answer, older in again if older and not answer.left]
        if any(answer.outcome == SendOutcome.UNAVAILABLE for answer, _ in again):
            return
