"""Money that moved, as the chain's events state it, and the running totals that keep its sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Self

from django.db import connection, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from jobs.models import AppendOnlyError, AppendOnlyQuerySet, Session
from nodes.fields import AddressField, Hash32Field, Uint256Field


class EarningKind(models.TextChoices):
    HOST = "host", "credited to the host"
    TREASURY = "treasury", "credited to the treasury"
    REFUND = "refund", "refunded to the depositor"
    GAS = "gas", "gas paid by the host"
    WITHDRAWAL = "withdrawal", "withdrawn by the host"
    SWEEP = "sweep", "swept to the operator's address"


class EarningQuerySet(AppendOnlyQuerySet):
    """Questions about movements of money."""

    def bulk_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        # Rows made in bulk do not pass through ``save``, which keeps the totals.
        raise AppendOnlyError("Earning rows are written by write(), which moves their totals")

    def write(self, rows: Sequence[Earning]) -> None:
        """Insert rows and move their totals, all in one transaction. Raises ``TotalContended``."""
        with transaction.atomic():
            super().bulk_create(rows)
            EarningTotal.count(rows)

    def bookings(self) -> EarningQuerySet:
        """Rows that book an event, without those that take a row back."""
        # Not ``reverses IS NULL``: SQLite takes that for the most selective search there is, since the column is
        # unique, and walks all the rows there ever were for each row of a query around this one.
        rows: EarningQuerySet = self.alias(takes_back=Coalesce("reverses_id", 0)).filter(takes_back=0)
        return rows

    def live(self) -> EarningQuerySet:
        """What stands: booked, and not taken back after a reorg."""
        return self.bookings().filter(reversal__isnull=True)


class Earning(models.Model):
    """One movement of ``amount`` base units of ``token`` (address zero = native coin).

    Identified by the log that states it; what has no log of its own (gas, a sweep of native coin) by its
    transaction and index -1. A row whose block was taken away by a reorg is never changed: a row that
    ``reverses`` it takes its amount back, and the event may then be booked anew with the next
    ``occurrence``. ``at`` is the block's time where it is known, else the time of booking. Saving a row
    moves the totals in the same transaction.
    """

    deployment = models.CharField(max_length=120)
    session = models.ForeignKey(Session, on_delete=models.PROTECT, null=True, blank=True, related_name="earnings")
    kind = models.CharField(max_length=20, choices=EarningKind)
    token = AddressField()
    amount = Uint256Field()
    transaction_hash = Hash32Field()
    log_index = models.IntegerField()
    block_number = models.PositiveBigIntegerField()
    block_hash = Hash32Field()
    occurrence = models.PositiveIntegerField(default=0, help_text="How often a reorg took this event back before.")
    reverses = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="reversal", help_text="Taken back."
    )
    at: models.DateTimeField[datetime, datetime] = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EarningQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["kind", "token"], name="earning_kind_token"),
            models.Index(fields=["deployment", "token", "kind"], name="earning_deployment_token"),
            models.Index(fields=["transaction_hash"], name="earning_transaction"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["deployment", "transaction_hash", "log_index", "kind", "occurrence"],
                condition=Q(reverses__isnull=True),
                name="one_earning_per_event",
            ),
        ]

    def __str__(self) -> str:
        return f"{'reversal of ' if self.reverses_id else ''}{self.kind} {self.amount} of {self.token}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnlyError("Earning rows are append-only")
        with transaction.atomic():
            super().save(*args, **kwargs)
            EarningTotal.count([self])

    @property
    def signed_amount(self) -> int:
        """What the row adds to its sum: less than zero where it takes another row back."""
        return -self.amount if self.reverses_id else self.amount

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AppendOnlyError("Earning rows are append-only")


ALL = "all"
"""Scope of the sums over everything."""


def scopes_of(*, session_id: int | None, at: datetime) -> tuple[str, ...]:
    """The sums that a row belongs to, in the order in which every transaction takes them."""
    day = f"day:{at.date().isoformat()}"
    return (ALL, day) if session_id is None else (ALL, day, job_scope(session_id))


def job_scope(session_id: int | None) -> str:
    """The scope of one job's sums."""
    return f"job:{session_id}"


class TotalContended(Exception):
    """Others kept changing a total; the transaction is to be tried again."""


class EarningTotal(models.Model):
    """A running sum of earning rows: all, of a UTC day, or of a job; per deployment, token and kind.

    SQLite cannot add uint256 columns, so a sum is read, added to in Python and written back with the
    value read as condition; of two writers the slower one reads again. ``taken_back`` sums reversals.
    """

    scope = models.CharField(max_length=40, help_text="all, day:2026-11-22, or job:<id of the session's row>")
    session = models.ForeignKey(Session, on_delete=models.PROTECT, null=True, blank=True, related_name="totals")
    deployment = models.CharField(max_length=120)
    token = AddressField()
    kind = models.CharField(max_length=20, choices=EarningKind)
    booked = Uint256Field(default=0)
    taken_back = Uint256Field(default=0)
    rows = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["scope", "deployment", "token", "kind"]
        constraints = [
            models.UniqueConstraint(fields=["scope", "deployment", "token", "kind"], name="one_total_per_sum"),
            models.CheckConstraint(condition=Q(taken_back__lte=F("booked")), name="no_more_taken_back_than_booked"),
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.kind} of {self.token}: {self.amount}"

    @property
    def amount(self) -> int:
        """The sum, base units."""
        return self.booked - self.taken_back

    @classmethod
    def count(cls, earnings: Sequence[Earning]) -> None:
        """Add rows to each sum that they belong to. Raises ``TotalContended`` after a hundred lost races."""
        sums = _added(earnings)
        if not sums:
            return
        for _ in range(100):
            known = cls._read(sums)
            missing = [(key, added) for key, added in sums.items() if key not in known]
            if missing:
                # Another worker may make the same one at the same moment: whose it is does not matter.
                EarningTotal.objects.bulk_create(
                    [EarningTotal._empty(key, added) for key, added in missing], ignore_conflicts=True
                )
                known = cls._read(sums)
            if cls._add(known, sums):
                return
        raise TotalContended(f"{len(sums)} sums, among them {min(sums)}")

    @classmethod
    def _read(cls, sums: Mapping[_Key, _Added]) -> dict[_Key, EarningTotal]:
        scopes, _, tokens, kinds = (set(parts) for parts in zip(*sums, strict=True))
        found = cls.objects.filter(scope__in=scopes, token__in=tokens, kind__in=kinds)
        return {(row.scope, row.deployment, row.token, row.kind): row for row in found}

    @classmethod
    def _empty(cls, key: _Key, added: _Added) -> Self:
        scope, deployment, token, kind = key
        return cls(scope=scope, deployment=deployment, token=token, kind=kind, session_id=added.session_id)

    @classmethod
    def _add(cls, known: Mapping[_Key, EarningTotal], sums: Mapping[_Key, _Added]) -> bool:
        """Whether no sum had changed since it was read; else nothing is added.

        Every change counts rows, so an unchanged count means an unchanged sum. The sums over everything
        come first, one by one and in order: who has those is the only one to change the sums below them.
        """
        with transaction.atomic():
            first = sorted(key for key in sums if key[0] == ALL)
            rest = [key for key in sums if key[0] != ALL]
            for keys in [*([key] for key in first), rest]:
                if not cls._compare_and_set([(known[key], sums[key]) for key in keys]):
                    transaction.set_rollback(True)
                    return False
        return True

    @classmethod
    def _compare_and_set(cls, changes: Sequence[tuple[EarningTotal, _Added]]) -> bool:
        amount = Uint256Field[int, int]()
        parameters = [
            (
                amount.get_db_prep_save(row.booked + added.booked, connection),
                amount.get_db_prep_save(row.taken_back + added.taken_back, connection),
                row.rows + added.rows,
                row.pk,
                row.rows,
            )
            for row, added in changes
        ]
        with connection.cursor() as cursor:
            # One prepared statement for many rows; the ORM's CASE over as many takes ten times as long.
            cursor.executemany(_COMPARE_AND_SET, parameters)
            return bool(cursor.rowcount == len(parameters))


_COMPARE_AND_SET = (
    'UPDATE settlement_earningtotal SET booked = %s, taken_back = %s, "rows" = %s WHERE id = %s AND "rows" = %s'
)
_Key = tuple[str, str, str, str]


@dataclass(slots=True, kw_only=True)
class _Added:
    """What rows add to one sum."""

    session_id: int | None
    booked: int = 0
    taken_back: int = 0
    rows: int = 0


def _added(earnings: Sequence[Earning]) -> dict[_Key, _Added]:
    sums: dict[_Key, _Added] = {}
    for row in earnings:
        for scope in scopes_of(session_id=row.session_id, at=row.at):
            owner = row.session_id if scope.startswith("job:") else None
            added = sums.setdefault((scope, row.deployment, row.token.lower(), str(row.kind)), _Added(session_id=owner))
            added.booked += 0 if row.reverses_id else row.amount
            added.taken_back += row.amount if row.reverses_id else 0
            added.rows += 1
    return sums
