"""The ledger's check beside a node that goes on working, and with more sessions than it looks at together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from jobs.models import Session, TokenUsage
from settlement import ledger, ledger_rows
from settlement.models import CheckpointState, Earning, EarningTotal
from settlement.snapshot import snapshot
from tests import factories


def elsewhere(work: Callable[[], Any]) -> None:
    """Do it on a connection of another thread, and wait until it is committed."""

    def then_close() -> None:
        try:
            work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(then_close).result(timeout=15)


@pytest.mark.django_db(transaction=True)
def test_a_snapshot_is_of_one_moment_and_holds_nobody_up() -> None:
    factories.make_session()
    with snapshot():
        assert Session.objects.count() == 1
        elsewhere(factories.make_session)
        assert Session.objects.count() == 1
    assert Session.objects.count() == 2
    # The next transaction writes again.
    factories.make_session()
    assert Session.objects.count() == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", [TokenUsage._meta.db_table, Earning._meta.db_table])
def test_what_is_committed_while_sums_are_read_is_no_violation(table: str) -> None:
    """As under load: rows were read, more were committed with their sums, then the sums were read."""
    session = factories.make_session()
    factories.add_request(session, tokens=100)
    worked: list[str] = []

    def work() -> None:
        factories.add_request(Session.objects.get(pk=session.pk), tokens=100)
        factories.add_checkpoint(Session.objects.get(pk=session.pk), state=CheckpointState.SETTLED)

    def beside(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if f'FROM "{table}"' in sql and not worked:
            worked.append(sql)
            elsewhere(work)
        return result

    with connection.execute_wrapper(beside):
        found = ledger.verify_database()
    assert worked
    assert found == []
    assert ledger.verify_database() == []
    assert Session.objects.get(pk=session.pk).tokens_tracked >= 200


@pytest.mark.django_db
def test_a_fault_is_found_in_whatever_page_its_session_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_rows, "_SESSIONS_AT_A_TIME", 2)
    sessions = [factories.make_settled_session() for _ in range(5)]
    assert ledger.verify_database() == []
    for session in (sessions[0], sessions[3], sessions[4]):
        Session.objects.filter(pk=session.pk).update(tokens_tracked=session.tokens_tracked + 1)
        total = EarningTotal.objects.filter(session=session)[0]
        EarningTotal.objects.filter(pk=total.pk).update(rows=total.rows + 1)
    found = [violation.invariant for violation in ledger.verify_database()]
    assert (found.count("I1"), found.count("I8")) == (3, 3)
