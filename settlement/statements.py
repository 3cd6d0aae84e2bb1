"""Statements: every figure about tokens and money that the node shows, from one place.

Guarantees that the front page, the commands, the exports and the metrics show the same numbers: money
from the running totals of the earning rows, tokens from the sessions' counters. Lines of one grouping
add up to those of any other. Asks the chain for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateField, F, Func, Max, Min, Q, QuerySet, Sum
from django.db.models.sql.compiler import SQLCompiler

from jobs.models import Session, TokenUsage
from settlement.amounts import Unit, unit_of
from settlement.models import Checkpoint, ContractDeployment, EarningKind, EarningTotal
from settlement.models.checkpoint import PAID_STATES
from settlement.models.earning import ALL

_CHUNK = 500
# What is read of a session to value its tokens by day.
_PRICED = (
    "deployment",
    "payment_token",
    "price_per_token",
    "price_precision",
    "tokens_tracked",
    "tokens_inherited",
    "created_at",
    "last_activity_at",
)
# Money of a group: by (deployment, token), the sum of each kind.
Money = dict[tuple[str, str], dict[str, int]]


class Grouping(StrEnum):
    TOKEN = "token"  # noqa: S105 - money, no password
    JOB = "job"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Completion token ids of jobs, as counted by this node: without what it found already claimed."""

    tracked: int
    sealed: int
    claimed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The figures of one group in one token. Amounts in its base units, ``day`` in UTC.

    ``accrued`` is what the counted tokens are worth at the job's price, before the treasury's share; all
    other amounts are the chain's events'. ``job_id`` is empty, grouped by job, for what serves no job.
    """

    deployment: str
    token: str
    unit: Unit
    session_id: int | None = None
    job_id: int | None = None
    day: date | None = None
    tokens_tracked: int = 0
    tokens_claimed: int = 0
    accrued: int = 0
    host: int = 0
    treasury: int = 0
    refund: int = 0
    gas: int = 0
    withdrawn: int = 0
    swept: int = 0

    @property
    def claimed(self) -> int:
        """What depositors paid for accepted claims."""
        return self.host + self.treasury

    @property
    def withdrawable(self) -> int:
        """Credited and not withdrawn, as far as this ledger saw; less than zero where more was withdrawn."""
        return self.host - self.withdrawn

    @property
    def net(self) -> int:
        """Credited less the gas paid in the same token."""
        return self.host - self.gas


def token_counts() -> TokenCounts:
    """Over all jobs."""
    sums = Session.objects.with_job().aggregate(
        tracked=Sum(F("tokens_tracked") - F("tokens_inherited"), default=0),
        sealed=Sum(F("tokens_sealed") - F("tokens_inherited"), default=0),
        claimed=Sum(F("tokens_claimed") - F("tokens_inherited"), default=0),
    )
    return TokenCounts(**sums)


def statement(
    *,
    by: Grouping = Grouping.TOKEN,
    deployment: str | None = None,
    since: date | None = None,
    until: date | None = None,
) -> Iterator[Line]:
    """Lines of one grouping; ``since`` and ``until`` (inclusive, UTC) bound the days of ``Grouping.DAY``."""
    chosen = Q() if deployment is None else Q(deployment=deployment)
    if by is Grouping.TOKEN:
        yield from _by_token(chosen)
    elif by is Grouping.JOB:
        yield from _by_job(chosen)
    else:
        yield from _by_day(chosen, since=since, until=until)


def _by_token(chosen: Q) -> Iterator[Line]:
    money = _money(EarningTotal.objects.filter(chosen, scope=ALL))
    work = _work(chosen)
    usdc = _usdc_addresses()
    for deployment, token in sorted(money.keys() | work.keys()):
        tracked, claimed, accrued = work.get((deployment, token), (0, 0, 0))
        yield _line(
            (deployment, token), usdc, money[deployment, token], tracked=tracked, claimed=claimed, accrued=accrued
        )


def _work(chosen: Q) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Tokens tracked and claimed, and the worth of the tracked ones, by deployment and payment token."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    priced = (
        Session.objects.with_job()
        .filter(chosen)
        .order_by()
        # Where a price is for one token, nothing is rounded and jobs of one price can be added in SQL.
        .values_list("deployment", "payment_token", "price_per_token", "price_precision")
    )
    whole = priced.filter(price_precision=1).annotate(
        tracked=Sum(F("tokens_tracked") - F("tokens_inherited")),
        claimed=Sum(F("tokens_claimed") - F("tokens_inherited")),
    )
    for deployment, token, price, _, tracked, claimed in whole:
        before = found.get((deployment, token), (0, 0, 0))
        found[deployment, token] = (before[0] + tracked, before[1] + claimed, before[2] + tracked * price)
    rounded = Session.objects.with_job().filter(chosen).exclude(price_precision=1).order_by()
    for session in rounded.iterator():
        key = (session.deployment, session.payment_token)
        before = found.get(key, (0, 0, 0))
        found[key] = (
            before[0] + session.tokens_tracked - session.tokens_inherited,
            before[1] + session.tokens_claimed - session.tokens_inherited,
            before[2] + _accrued(session),
        )
    return found


def _accrued(session: Session) -> int:
    return session.worth(session.tokens_tracked) - session.worth(session.tokens_inherited)


def _by_job(chosen: Q) -> Iterator[Line]:
    usdc = _usdc_addresses()
    rest = _money(EarningTotal.objects.filter(chosen, scope=ALL))
    sessions = Session.objects.with_job().filter(chosen).order_by("id").prefetch_related("totals")
    for session in sessions.iterator(chunk_size=_CHUNK):
        money = _money(session.totals.all())
        for key, amounts in money.items():
            for kind, amount in amounts.items():
                rest[key][kind] -= amount
        paid_in = (session.deployment, session.payment_token)
        for key in [paid_in, *sorted(money.keys() - {paid_in})]:
            mine = key == paid_in
            yield _line(
                key,
                usdc,
                money.get(key, {}),
                session=session,
                tracked=session.tokens_tracked - session.tokens_inherited if mine else 0,
                claimed=session.tokens_claimed - session.tokens_inherited if mine else 0,
                accrued=_accrued(session) if mine else 0,
            )
    for key in sorted(rest):
        if any(rest[key].values()):
            yield _line(key, usdc, rest[key])


def _by_day(chosen: Q, *, since: date | None, until: date | None) -> Iterator[Line]:
    usdc = _usdc_addresses()
    days: dict[date, Money] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for row in EarningTotal.objects.filter(chosen, scope__startswith="day:"):
        day = date.fromisoformat(row.scope.removeprefix("day:"))
        days[day][row.deployment, row.token][row.kind] += row.amount
    work = _work_by_day(chosen)
    for key in work:
        days[key[0]][key[1:]]  # a day of work alone has a line too
    for day in sorted(days):
        if (since and day < since) or (until and day > until):
            continue
        for deployment, token in sorted(days[day]):
            tracked, claimed, accrued = work.get((day, deployment, token), (0, 0, 0))
            yield _line(
                (deployment, token),
                usdc,
                days[day][deployment, token],
                day=day,
                tracked=tracked,
                claimed=claimed,
                accrued=accrued,
            )


def _work_by_day(chosen: Q) -> dict[tuple[date, str, str], tuple[int, int, int]]:
    sums: dict[tuple[date, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    sessions = {row.pk: row for row in Session.objects.with_job().filter(chosen).only(*_PRICED).iterator()}
    # Most sessions begin and end on one day: what they counted is of that day, and no usage row need be read.
    whole = {pk: row for pk, row in sessions.items() if _utc_day(row.created_at) == _utc_day(row.last_activity_at)}
    for session in whole.values():
        if tokens := session.tokens_tracked - session.tokens_inherited:
            into = sums[_utc_day(session.created_at), session.deployment, session.payment_token]
            into[0] += tokens
            into[2] += _accrued(session)
    used = (
        TokenUsage.objects.filter(session__in=_of_several_days(chosen))
        .annotate(day=_UtcDay("created_at"))
        .values_list("session_id", "day")
        .annotate(tokens=Sum("count"), first=Min("first_index"), end=Max(F("first_index") + F("count")))
        .order_by()
    )
    for session_id, day, tokens, first, end in used.iterator():
        if (found := sessions.get(session_id)) is not None:
            into = sums[day, found.deployment, found.payment_token]
            into[0] += tokens
            # By difference, so that the days of a job add up to the job in spite of rounding.
            into[2] += found.worth(end) - found.worth(first)
    confirmed = Checkpoint.objects.filter(state__in=PAID_STATES).values_list(
        "session_id", "confirmed_at", "from_token", "to_token"
    )
    for session_id, at, start, end in confirmed.order_by().iterator():
        if (found := sessions.get(session_id)) is not None and isinstance(at, datetime):
            sums[at.date(), found.deployment, found.payment_token][1] += end - start
    return {key: (tracked, claimed, accrued) for key, (tracked, claimed, accrued) in sums.items()}


def _of_several_days(chosen: Q) -> QuerySet[Session]:
    jobs = Session.objects.with_job().filter(chosen)
    return jobs.annotate(first=_UtcDay("created_at"), last=_UtcDay("last_activity_at")).exclude(first=F("last"))


def _utc_day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


class _UtcDay(Func):
    """The day of a time, by the database's own function; SQLite would call back into Python for ``TruncDate``."""

    function = "DATE"
    output_field = DateField()

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="(%(expressions)s AT TIME ZONE 'UTC')::date", **context)


def _money(totals: Iterable[EarningTotal]) -> Money:
    found: Money = defaultdict(lambda: defaultdict(int))
    for row in totals:
        found[row.deployment, row.token][row.kind] += row.amount
    return found


def _usdc_addresses() -> set[tuple[str, str]]:
    return set(ContractDeployment.objects.filter(name="usdc").values_list("deployment", "address"))


def _line(
    key: tuple[str, str],
    usdc: set[tuple[str, str]],
    amounts: dict[str, int],
    *,
    session: Session | None = None,
    day: date | None = None,
    tracked: int = 0,
    claimed: int = 0,
    accrued: int = 0,
) -> Line:
    return Line(
        deployment=key[0],
        token=key[1],
        unit=unit_of(key[1], is_usdc=key in usdc),
        session_id=None if session is None else session.pk,
        job_id=None if session is None else session.job_id,
        day=day,
        tokens_tracked=tracked,
        tokens_claimed=claimed,
        accrued=accrued,
        host=amounts.get(EarningKind.HOST, 0),
        treasury=amounts.get(EarningKind.TREASURY, 0),
        refund=amounts.get(EarningKind.REFUND, 0),
        gas=amounts.get(EarningKind.GAS, 0),
        withdrawn=amounts.get(EarningKind.WITHDRAWAL, 0),
        swept=amounts.get(EarningKind.SWEEP, 0),
    )
