"""A host whose process dies, whose work is interleaved with everything else, and whose table is watched.

A death is an exception at a request or a commit after which nothing of that process touches network or database:
what it had not committed is rolled back, and its ``finally`` blocks fail as well. After each commit the whole
table is compared with what it was before (states, nonces, attempts), and each transaction sent with the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from eth_account import Account

from settlement.chain.answers import ChainUnavailable, NodeRefused
from settlement.chain.bindings import JobMarketplace
from settlement.chain.client import ChainClient
from settlement.chain.deployment import HOST_GENERATION, Deployment
from settlement.chain.signer import LocalSigner
from settlement.host_chain import signing_rules
from settlement.txmanager import senders
from settlement.txmanager.limits import Limits
from settlement.txmanager.manager import TransactionManager
from tests.faults.reference_model import ARROWS, UNMADE
from tests.faults.simulated_chain import CHAIN_ID, GWEI, Sent, SimulatedChain, SimulatedNode

MARKETPLACE = "0x" + "Aa" * 20
LIMITS = Limits(max_fee_per_gas=100 * GWEI, max_cost=10**16, daily_budget=10**18, max_in_flight=6, confirmations=4)
_START = datetime(2026, 1, 1, tzinfo=UTC)
_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
_ACCOUNT = Account.from_key("0x" + "5a" * 32)
_SIGNATURES: dict[tuple[Any, ...], Any] = {}


class Died(BaseException):
    """The process is gone."""


class _RememberingAccount:
    """The same bytes for the same fields, as deterministic signatures give them, without computing them again."""

    address = _ACCOUNT.address

    def sign_transaction(self, fields: dict[str, Any]) -> Any:
        key = tuple(fields.values())
        if key not in _SIGNATURES:
            _SIGNATURES[key] = _ACCOUNT.sign_transaction(fields)
        return _SIGNATURES[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    key: str
    kind: str
    state: str
    nonce: int | None
    to: str
    data: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAttempt:
    row: int
    kind: str
    nonce: int
    gas: int
    max_fee: int
    tip: int


@dataclass
class SimulatedHost:
    """Use inside ``installed``. ``reorged_deep`` and ``nodes_lied`` excuse what only they can cause."""

    offset: timedelta = timedelta(0)
    dies_in: int = 0
    ambush: tuple[int, Callable[[], None]] | None = None
    reorged_deep: bool = False
    incarnation: int = 1
    machine: int = 1
    deaths: int = 0
    rows: dict[int, SeenRow] = field(default_factory=dict)
    attempts: dict[str, SeenAttempt] = field(default_factory=dict)
    transitions: list[tuple[str, str]] = field(default_factory=list)
    _last_attempt: int = 0
    _dead: bool = False
    _dirty: bool = False
    _observing: bool = False

    def __post_init__(self) -> None:
        self.chain = SimulatedChain(
            sender=_ACCOUNT.address.lower(),
            now=self.now,
            confirmations=LIMITS.confirmations,
            refuses=lambda data: _job(data) % 8 == 7,
            reverts=lambda data: _job(data) % 8 == 6,
        )
        self.node = SimulatedNode(
            chain=self.chain, before=self._before_request, after=self._boundary, on_send=self._check_send
        )
        self.marketplace = JobMarketplace(MARKETPLACE)
        self.restart()

    def now(self) -> datetime:
        return _START + self.offset

    def restart(self) -> None:
        """A process like the last one, which remembers nothing."""
        self._dead, self.dies_in, self.ambush = False, 0, None
        self.incarnation += 1
        self.manager = self.new_manager()

    def new_manager(self) -> TransactionManager:
        """A manager that shares nothing but chain and database with the others."""
        deployment = Deployment(CHAIN_ID, HOST_GENERATION, MARKETPLACE)
        rules = signing_rules(deployment, chain_id=CHAIN_ID, limits=LIMITS)
        clock = lambda: self.offset.total_seconds()  # noqa: E731 - read where the client reads it
        client = ChainClient(("http://nowhere.invalid",), chain_id=CHAIN_ID, clock=clock)
        client._endpoints._all[0].transport = self.node  # type: ignore[assignment]
        signer = LocalSigner(_RememberingAccount(), rules=rules, clock=clock)  # type: ignore[arg-type]
        return TransactionManager(client=client, signer=signer, limits=LIMITS)

    def live(self, action: Callable[[], Any]) -> None:
        """Do it as the task does: a chain that is away is no error, and a death ends this process."""
        try:
            action()
        except (ChainUnavailable, NodeRefused):
            pass
        except Died:
            self.deaths += 1
            _forget_connection()
            self.restart()
        self.dies_in, self.ambush = 0, None
        self.observe()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Its clock, its boundaries and its identity in place of the real ones."""
        commit = BaseDatabaseWrapper._commit

        def committing(wrapper: BaseDatabaseWrapper) -> Any:
            try:
                self._boundary("commit")
            except Died:
                # Leaving the atomic block would commit after all: sqlite3 does so when autocommit is turned on.
                wrapper.connection.rollback()
                raise
            result = commit(wrapper)
            self._dirty = True
            self._boundary("commit")
            return result

        machine = SimpleNamespace(gethostname=lambda: f"machine-{self.machine}")
        with (
            mock.patch("django.utils.timezone.now", self.now),
            mock.patch.object(BaseDatabaseWrapper, "_commit", committing),
            mock.patch.object(senders, "socket", machine),
            mock.patch.object(senders, "_namespace", lambda: "pid:[1]"),
            mock.patch.object(senders, "_started", lambda pid: str(self.incarnation)),
            connection.execute_wrapper(self._executing),
        ):
            yield

    def _executing(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        if self._observing:
            return execute(sql, params, many, context)
        if self._dead:
            raise Died
        if self._dirty:
            self.observe()
        if context["connection"].in_atomic_block or not _WRITES.match(sql):
            return execute(sql, params, many, context)
        self._boundary("commit")
        result = execute(sql, params, many, context)
        self._dirty = True
        self._boundary("commit")
        return result

    def _boundary(self, _what: str) -> None:
        if self._dead:
            raise Died
        if self.dies_in:
            self.dies_in -= 1
            if not self.dies_in:
                self._dead = True
                raise Died

    def _before_request(self, what: str) -> None:
        self._boundary(what)
        assert not connection.in_atomic_block, f"{what} inside a database transaction"
        if self.ambush is None:
            return
        left, action = self.ambush
        self.ambush = (left - 1, action)
        if left <= 1:
            self.ambush = None
            action()

    def observe(self) -> None:
        """Compare the committed table with the last look at it."""
        self._dirty, self._observing = False, True
        try:
            with connection.cursor() as cursor:
                cursor.execute('SELECT id, key, kind, state, nonce, "to", data, value FROM settlement_transaction')
                rows = {row[0]: _seen_row(row[1:]) for row in cursor.fetchall()}
                cursor.execute(
                    "SELECT id, hash, transaction_id, kind, nonce, gas_limit, max_fee_per_gas, "
                    f"max_priority_fee_per_gas FROM settlement_attempt WHERE id > {self._last_attempt} ORDER BY id"
                )
                attempts = cursor.fetchall()
        finally:
            self._observing = False
        for row_id, row in rows.items():
            before = self.rows.get(row_id)
            if before != row:
                self._check_row(row_id, before, row)
        assert not set(self.rows) - set(rows), "a row is gone"
        self.rows = rows
        for attempt_id, tx_hash, *fields in attempts:
            self._last_attempt = attempt_id
            self._check_attempt(_seen_attempt(fields))
            self.attempts[tx_hash] = _seen_attempt(fields)

    def _check_row(self, row_id: int, before: SeenRow | None, after: SeenRow) -> None:
        if before is None:
            arrow = ("new", after.state)
            assert after.state == "queued" or after.kind == "fill", f"{after.key} appeared {after.state}"
        else:
            arrow = (before.state, after.state)
            same = (before.to, before.data, before.value) == (after.to, after.data, after.value)
            assert same, f"{after.key} stands for another call now"
            moved = before.nonce is not None and after.nonce is not None and before.nonce != after.nonce
            assert not moved, f"{after.key}: nonce {before.nonce} became {after.nonce}"
            if before.nonce is not None and after.nonce is None:
                self._check_displaced(before)
        if arrow[0] == arrow[1]:
            return
        self.transitions.append(arrow)
        assert arrow in ARROWS, f"{after.key}: {arrow}"
        assert arrow not in UNMADE or self.reorged_deep, f"{after.key}: {arrow} without a lost block"
        assert arrow[0] != "cancelled" or self.reorged_deep or after.kind == "fill", f"{after.key}: {arrow}"
        if after.state in ("mined", "final", "reverted") or arrow == ("mined", "cancelled"):
            self._check_receipt(row_id, after)

    def _check_displaced(self, before: SeenRow) -> None:
        """Only where a final block holds a foreign transaction with this nonce (invariant 8)."""
        final = [sent for block in self.chain.blocks[: self.chain.final + 1] for sent in block.transactions]
        used_by = next((sent for sent in final if sent.nonce == before.nonce), None)
        assert used_by and used_by.foreign, f"{before.key} was displaced from {before.nonce} by {used_by}"

    def _check_receipt(self, row_id: int, row: SeenRow) -> None:
        """Final means: in the chain, and deep enough (invariant 10)."""
        if row.state == "mined" or self.reorged_deep:
            return
        found = [
            (sent, block)
            for tx_hash, (sent, block) in self.chain.included().items()
            if tx_hash in self.attempts and self.attempts[tx_hash].row == row_id
        ]
        assert len(found) == 1, f"{row.key} is {row.state} with {len(found)} transactions on the chain"
        sent, block = found[0]
        assert block.number <= self.chain.final, f"{row.key} is {row.state} at {block.number} of {self.chain.head}"
        told = "cancelled" if not sent.work and row.kind != "fill" else "final"
        told = "reverted" if sent.work and self.chain.reverts(sent.data) else told
        assert row.state == told, f"{row.key} is {row.state}, the chain says {told}"

    def _check_attempt(self, new: SeenAttempt) -> None:
        """Invariants 5 and 6, and the operator's limits."""
        row = self.rows[new.row]
        assert new.max_fee <= LIMITS.max_fee_per_gas, f"{row.key} offers {new.max_fee}"
        assert new.gas * new.max_fee <= LIMITS.max_cost, f"{row.key} may cost {new.gas * new.max_fee}"
        for other in self.attempts.values():
            if other.nonce != new.nonce:
                continue
            assert other.row == new.row, f"nonce {new.nonce} was signed for two rows"
            assert 10 * new.max_fee >= 11 * other.max_fee, f"{row.key}: {other.max_fee} to {new.max_fee}"
            assert 10 * new.tip >= 11 * other.tip, f"{row.key}: a tip of {other.tip} to {new.tip}"
            assert new.gas >= other.gas or new.kind == "cancel", f"{row.key}: gas {other.gas} to {new.gas}"

    def _check_send(self, sent: Sent, raw: str) -> None:
        """Stored before it was sent, and the very call that the row stands for (invariants 2 and 5)."""
        if self._dirty:
            self.observe()
        attempt = self.attempts.get(sent.hash)
        assert attempt is not None, f"{raw[:20]} was sent and is not stored"
        row = self.rows[attempt.row]
        assert (sent.nonce, sent.sender, sent.chain_id) == (attempt.nonce, self.chain.sender, CHAIN_ID)
        wanted = (self.chain.sender, "0x", 0) if attempt.kind == "cancel" else (row.to, row.data, row.value)
        assert (sent.to, sent.data, sent.value) == wanted, f"{row.key} was sent as another call"


def _seen_row(fields: tuple[Any, ...]) -> SeenRow:
    key, kind, state, nonce, to, data, value = fields
    return SeenRow(key=key, kind=kind, state=state, nonce=nonce, to=to, data=data, value=int(value))


def _seen_attempt(fields: list[Any]) -> SeenAttempt:
    row, kind, nonce, gas, max_fee, tip = fields
    return SeenAttempt(row=row, kind=kind, nonce=nonce, gas=gas, max_fee=int(max_fee), tip=int(tip))


def _job(data: str) -> int:
    """The first argument of a call: the job's number."""
    return int(data[10:74] or "0", 16)


def _forget_connection() -> None:
    """What the database does when a client is gone; the connection itself is used again."""
    connection.in_atomic_block = False
    connection.savepoint_ids, connection.atomic_blocks = [], []
    connection.needs_rollback = False
    connection.commit_on_exit = True
    connection.run_on_commit = []
    if connection.connection is not None:
        connection.connection.rollback()
        connection.set_autocommit(True)
