"""The ledger's invariants that the database alone can show.

Guarantees one pass over each table, with sums made by the database where its types allow it, and a page of
sessions in memory at a time: a node with a million usage rows is checked in seconds. To be read in one
``snapshot``. Yields a violation for each row that breaks a rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from django.db.models import Count, Exists, F, Max, Min, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from jobs.models import Session, TokenUsage
from settlement.models import (
    Checkpoint,
    CheckpointEvent,
    CheckpointState,
    Closing,
    Earning,
    EarningKind,
    EarningTotal,
    Receipt,
    Sender,
    Transaction,
    TransactionState,
    Withdrawal,
)
from settlement.models.checkpoint import PAID_STATES
from settlement.models.earning import job_scope, scopes_of
from settlement.violations import Violation

# A step of the pipeline takes seconds; a row that is due for this long has nobody to drive it.
UNATTENDED = timedelta(minutes=15)
_REBUILD_PAGE = 1000
_SESSIONS_AT_A_TIME = 500

Page = tuple[int, int]
"""The first and the last of a range of session ids."""
Sums = dict[tuple[str, str, str, str], list[int]]
"""Booked, taken back and number of rows, by scope, deployment, token and kind."""

_ORDER = [
    CheckpointState.SEALED,
    CheckpointState.PROVING,
    CheckpointState.PROVED,
    CheckpointState.QUEUED,
    CheckpointState.SENT,
    CheckpointState.MINED,
    CheckpointState.CONFIRMED,
    CheckpointState.SETTLED,
    CheckpointState.WITHDRAWN,
]
_OVER = (TransactionState.FINAL, TransactionState.REVERTED, TransactionState.CANCELLED)
_RESTORE = "Stop the node, keep a copy of the database, and restore the last backup or report this as a bug."


def tracked_is_used() -> Iterator[Violation]:
    """I1: a session's counter is the sum of its usage rows, and those tile it."""
    for page in _pages():
        yield from _tracked_is_used(page)


def _tracked_is_used(page: Page) -> Iterator[Violation]:
    used = {
        session: (tokens, first, end)
        for session, tokens, first, end in TokenUsage.objects.filter(session__pk__range=page)
        .values_list("session")
        .annotate(tokens=Sum("count"), first=Min("first_index"), end=Max(F("first_index") + F("count")))
        .order_by()
    }
    sessions = Session.objects.filter(pk__range=page).values_list("pk", "job_id", "tokens_tracked", "tokens_inherited")
    for pk, job_id, tracked, inherited in sessions.order_by():
        tokens, first, end = used.get(pk, (0, inherited, inherited))
        if inherited + tokens != tracked:
            yield Violation(
                "I1",
                f"{_session(pk, job_id)}: {tracked} tokens tracked, usage rows say {inherited + tokens}",
                "The meter writes both in one transaction, so the database was changed by hand. " + _RESTORE,
            )
        elif (first, end) != (inherited, tracked):
            yield Violation(
                "I1",
                f"{_session(pk, job_id)}: usage rows span {first} to {end}, the counter {inherited} to {tracked}",
                "Usage rows overlap or are missing. " + _RESTORE,
            )


def ranges_tile() -> Iterator[Violation]:
    """I2: checkpoints of a session follow each other, and what is sealed and claimed is what they hold."""
    for page in _pages():
        yield from _ranges_tile(page)


def _ranges_tile(page: Page) -> Iterator[Violation]:
    ends: dict[int, int] = {}
    paid: dict[int, int] = defaultdict(int)
    rows = (
        Checkpoint.objects.filter(session__pk__range=page)
        .order_by("session_id", "from_token")
        .values_list(
            "session_id", "session__tokens_inherited", "session__job_id", "index", "from_token", "to_token", "state"
        )
    )
    for pk, inherited, job_id, index, start, end, state in rows.iterator():
        expected = ends.get(pk, inherited)
        if start != expected:
            yield Violation(
                "I2",
                f"checkpoint {index} of {_session(pk, job_id)}: starts at {start}, the one before ends at {expected}",
                "Tokens between the two are claimed twice or never. Pause its checkpoints. " + _RESTORE,
            )
        ends[pk] = end
        paid[pk] += end - start if state in PAID_STATES else 0
    sessions = (
        Session.objects.with_job()
        .filter(pk__range=page)
        .values_list("pk", "job_id", "tokens_inherited", "tokens_sealed", "tokens_claimed")
    )
    for pk, job_id, inherited, sealed, claimed in sessions.order_by():
        if ends.get(pk, inherited) != sealed:
            yield Violation(
                "I2",
                f"{_session(pk, job_id)}: {sealed} tokens sealed, checkpoints end at {ends.get(pk, inherited)}",
                "Its sealing is not to be trusted: pause its checkpoints. " + _RESTORE,
            )
        if paid[pk] + inherited != claimed:
            yield Violation(
                "I2",
                f"{_session(pk, job_id)}: {claimed} tokens claimed, paid checkpoints hold {paid[pk] + inherited}",
                "Compare its checkpoints with the chain: manage.py verify_ledger, then manage.py reconcile.",
            )


def credits_are_booked() -> Iterator[Violation]:
    """I4: what a job's checkpoints say the host was credited is what the earning rows say."""
    for page in _pages():
        yield from _credits_are_booked(page)
    broken = Checkpoint.objects.filter(host_amount__isnull=False).values_list(
        "session_id", "index", "gross", "host_amount", "treasury_amount"
    )
    for pk, index, gross, host, treasury in broken.iterator():
        if gross != (host or 0) + (treasury or 0):
            yield Violation(
                "I4",
                f"checkpoint {index} of session {pk}: host {host} + treasury {treasury} is not gross {gross}",
                "A credit was lost or invented. " + _RESTORE,
            )


def _credits_are_booked(page: Page) -> Iterator[Violation]:
    credited: dict[int, int] = defaultdict(int)
    paid = Checkpoint.objects.paid().filter(host_amount__isnull=False, session__pk__range=page)
    for pk, amount in paid.values_list("session_id", "host_amount").iterator():
        credited[pk] += amount or 0
    # An early end may cost the depositor a fee though nothing was claimed: then its event alone says what was paid.
    unclaimed = Closing.objects.filter(session__tokens_claimed=0, paid_host__isnull=False, session__pk__range=page)
    for pk, amount in unclaimed.values_list("session_id", "paid_host"):
        credited[pk] += amount or 0
    booked: dict[int, int] = defaultdict(int)
    for row in EarningTotal.objects.filter(kind=EarningKind.HOST, session__pk__range=page):
        booked[row.session_id or 0] += row.amount
    # What an earlier life of this host claimed may be paid together with what this one did.
    inherited = set(Session.objects.filter(tokens_inherited__gt=0, pk__range=page).values_list("pk", flat=True))
    for pk in sorted(credited.keys() | booked.keys()):
        if booked[pk] == credited[pk] or (pk in inherited and booked[pk] > credited[pk]):
            continue
        yield Violation(
            "I4",
            f"session {pk}: checkpoints were credited {credited[pk]} base units, earning rows say {booked[pk]}",
            "Run manage.py reconcile, which reads the job's events again.",
        )


def one_transaction_per_nonce() -> Iterator[Violation]:
    """I5: of all transactions of a sender with one nonce, one is mined."""
    who = ("transaction__chain_id", "transaction__sender", "attempt__nonce")
    twice = Receipt.objects.order_by().values(*who).annotate(times=Count("pk")).filter(times__gt=1)
    for row in twice:
        yield Violation(
            "I5",
            f"nonce {row['attempt__nonce']} of {row['transaction__sender']} on chain {row['transaction__chain_id']} "
            f"has {row['times']} mined transactions",
            "One of their receipts is of a block that is gone: manage.py reconcile reads them again.",
        )


def no_step_backwards() -> Iterator[Violation]:
    """I6: checkpoints move on, or back by way of REORGED; what they are is where their last step led."""
    steps = CheckpointEvent.objects.exclude(from_state="").order_by().values_list("from_state", "to_state").distinct()
    for from_state, to_state in steps:
        if not _backwards(from_state, to_state):
            continue
        for event in CheckpointEvent.objects.filter(from_state=from_state, to_state=to_state).select_related(
            "checkpoint__session"
        ):
            yield Violation(
                "I6",
                f"{event.checkpoint}: went {event} at {event.at.isoformat()}",
                "Paid work may be claimed again: pause the checkpoint and compare it with the chain.",
            )
    last = CheckpointEvent.objects.filter(checkpoint=OuterRef("pk")).order_by("-id").values("to_state")[:1]
    strayed: QuerySet[Any] = Checkpoint.objects.annotate(led_to=Subquery(last)).exclude(led_to=F("state"))
    for row in strayed.select_related("session").iterator():
        yield Violation(
            "I6",
            f"{row}: is {row.state}, its last step led to {row.led_to or 'nowhere'}",
            "It was changed past its history. Pause it and compare it with the chain.",
        )


def _backwards(from_state: str, to_state: str) -> bool:
    if from_state in PAID_STATES and to_state == CheckpointState.REORGED:
        return False
    if from_state in PAID_STATES and to_state not in PAID_STATES:
        return True
    if from_state not in _ORDER or to_state not in _ORDER:
        return False
    # A prover that died gives its checkpoint back; nothing has left the node by then.
    given_back = (from_state, to_state) == (CheckpointState.PROVING, CheckpointState.SEALED)
    return not given_back and _ORDER.index(CheckpointState(to_state)) < _ORDER.index(CheckpointState(from_state))


def nothing_unattended() -> Iterator[Violation]:
    """I7: what is on its way moved, or is told to wait, within the time in which it should."""
    now = timezone.now()
    late = now - UNATTENDED
    last = CheckpointEvent.objects.filter(checkpoint=OuterRef("pk")).order_by("-id").values("at")[:1]
    waiting: QuerySet[Any] = Checkpoint.objects.unpaid().annotate(
        due_since=Coalesce(F("retry_at"), Subquery(last), F("created_at"))
    )
    for row in waiting.filter(due_since__lt=late).select_related("session").iterator():
        yield Violation(
            "I7",
            f"{row}: {row.state} since {row.due_since.isoformat()}" + (f" ({row.reason})" if row.reason else ""),
            "Is the worker of the queues chain and proofs running? manage.py preflight tells what stops it.",
        )
    # A sender that pauses says why, and goes on by itself.
    paused = Sender.objects.filter(chain_id=OuterRef("chain_id"), address=OuterRef("sender"), paused_until__gt=now)
    stuck = Transaction.objects.unfinished().exclude(state=TransactionState.MINED).exclude(Exists(paused))
    for transaction in stuck.filter(Q(retry_at__isnull=True) | Q(retry_at__lt=late), created_at__lt=late).iterator():
        yield Violation(
            "I7",
            f"{transaction}: {transaction.state}" + (f" ({transaction.reason})" if transaction.reason else ""),
            "See the transaction's attempts; bump or cancel it with manage.py transactions.",
        )
    for withdrawal in Withdrawal.objects.unfinished().filter(created_at__lt=late).select_related("transaction"):
        sent = withdrawal.transaction
        if sent is None or sent.state in (*_OVER, TransactionState.FAILED):
            yield Violation(
                "I7",
                f"{withdrawal}: {withdrawal.state} since {withdrawal.created_at.isoformat()}",
                "Nobody takes its next step: is the worker of the queue chain running?",
            )


def totals_add_up() -> Iterator[Violation]:
    """I8: every running total is the sum of its rows, and a transaction's rows stand in one block."""
    wide: Sums = defaultdict(lambda: [0, 0, 0])
    for page in _pages():
        sums: Sums = defaultdict(lambda: [0, 0, 0])
        _add_up(Earning.objects.filter(session__pk__range=page), of_sessions=sums, wide=wide)
        yield from _sums_match(EarningTotal.objects.filter(session__pk__range=page), sums)
    _add_up(Earning.objects.filter(session__isnull=True), of_sessions=wide, wide=wide)
    yield from _sums_match(EarningTotal.objects.filter(session__isnull=True), wide)
    torn = (
        Earning.objects.live()
        .order_by()
        .values("deployment", "transaction_hash")
        .annotate(blocks=Count("block_hash", distinct=True))
        .filter(blocks__gt=1)
    )
    for found in torn:
        yield Violation(
            "I8",
            f"earnings of {found['transaction_hash']} stand in {found['blocks']} blocks",
            "One of the blocks is gone: manage.py reconcile reads the transaction again and takes that part back.",
        )


def _add_up(rows: QuerySet[Earning], *, of_sessions: Sums, wide: Sums) -> None:
    """Booked, taken back and rows of every scope; those of a single job apart."""
    facts = rows.order_by().values_list("deployment", "token", "kind", "amount", "reverses_id", "session_id", "at")
    for deployment, token, kind, amount, reverses, session, at in facts.iterator():
        for scope in scopes_of(session_id=session, at=at):
            total = (of_sessions if scope == job_scope(session) else wide)[scope, deployment, token, kind]
            total[1 if reverses else 0] += amount
            total[2] += 1


def _sums_match(totals: QuerySet[EarningTotal], sums: Sums) -> Iterator[Violation]:
    for row in totals.iterator():
        expected = sums.pop((row.scope, row.deployment, row.token, row.kind), [0, 0, 0])
        if [row.booked, row.taken_back, row.rows] != expected:
            yield Violation(
                "I8",
                f"{row}: its {expected[2]} rows add up to {expected[0] - expected[1]}",
                "The rows are the truth: manage.py verify_ledger --rebuild-totals adds them up anew.",
            )
    for (scope, _, token, kind), expected in sums.items():
        yield Violation(
            "I8",
            f"{scope} {kind} of {token}: {expected[2]} rows and no total",
            "The rows are the truth: manage.py verify_ledger --rebuild-totals adds them up anew.",
        )


def gas_is_booked() -> Iterator[Violation]:
    """I8: what a transaction cost is in the ledger, once it has been over for a while."""
    booked = Earning.objects.live().filter(kind=EarningKind.GAS, transaction_hash=OuterRef("attempt__hash"))
    missing = Receipt.objects.filter(
        ~Exists(booked), transaction__state__in=_OVER, block_time__lt=timezone.now() - UNATTENDED
    )
    for receipt in missing.select_related("transaction").iterator():
        yield Violation(
            "I8",
            f"{receipt.transaction}: its gas is not in the ledger",
            "Run manage.py earnings --book-gas, which looks at every transaction again.",
        )


def rebuild_totals() -> int:
    """Add all rows up anew; returns how many totals there are. For a node whose workers stand still."""
    EarningTotal.objects.all().delete()
    rows = Earning.objects.order_by("id").iterator()
    while page := list(islice(rows, _REBUILD_PAGE)):
        EarningTotal.count(page)
    return EarningTotal.objects.count()


def _pages() -> Iterator[Page]:
    """Ranges of session ids, from first to last, that hold them all."""
    last = Session.objects.aggregate(last=Max("pk"))["last"] or 0
    for first in range(1, last + 1, _SESSIONS_AT_A_TIME):
        yield first, first + _SESSIONS_AT_A_TIME - 1


def _session(pk: int, job_id: int | None) -> str:
    return f"session {pk} (no job)" if job_id is None else f"job {job_id}"
