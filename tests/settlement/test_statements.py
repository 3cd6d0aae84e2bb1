"""One figure everywhere: front page, command, CSV and JSON say what the rows and the chain's events say."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from settlement import earnings, exports, ledger_rows, statements
from settlement.amounts import USDC, format_amount
from settlement.models import Checkpoint, Earning, EarningKind, EarningTotal
from settlement.statements import Grouping
from tests import factories
from tests.settlement.test_earnings import claim_at, ended_at, position

pytestmark = pytest.mark.django_db

_START = datetime(2026, 11, 20, 12, tzinfo=UTC)
_FIGURES = ("accrued", "claimed", "credited", "withdrawn", "treasury", "refund", "gas", "net", "swept")
_TOKENS = ("tokens_tracked", "tokens_claimed")


def exported(by: Grouping) -> list[dict[str, str]]:
    out = io.StringIO()
    call_command("earnings", by=by.value, csv=True, stdout=out)
    return list(csv.DictReader(io.StringIO(out.getvalue())))


def added_up(records: list[dict[str, str]]) -> dict[str, Counter[str]]:
    sums: dict[str, Counter[str]] = {}
    for record in records:
        of_token = sums.setdefault(record["token"], Counter())
        of_token.update({name: int(record[name]) for name in (*_FIGURES, *_TOKENS)})
    return {token: +sums[token] - Counter() for token in sums if any(sums[token].values())}


def _apply(event: tuple[str, int, int, int], *, sessions: list[Any], seen: dict[tuple[str, str], int]) -> None:
    """One event of the chain, or one claim; ``seen`` adds up what the chain says."""
    what, which, amount, day = event
    session = sessions[which % len(sessions)]
    token = session.payment_token
    at = _START + timedelta(days=day)
    where = {"deployment": factories.DEPLOYMENT, "session_id": session.pk}

    def add(kind: str, moved: int) -> None:
        seen[token, kind] = seen.get((token, kind), 0) + moved

    if what == "claim":
        claim = replace(claim_at(position(), host=amount, treasury=amount // 9), token=token)
        for _ in range(2):
            earnings.book_claim(claim, at=at, **where)
        add("host", amount)
        add("treasury", amount // 9)
    elif what == "refund":
        earnings.book_refund(ended_at(position(), refund=amount), token=token, at=at, **where)
        add("refund", amount)
    elif what == "sweep":
        earnings.book_sweep(
            amount, token=token, position=position(log_index=-1), deployment=factories.DEPLOYMENT, at=at
        )
        add("sweep", amount)
    else:
        gone = position()
        earnings.book_claim(replace(claim_at(gone, host=amount), token=token), at=at, **where)
        earnings.reverse(transaction_hash=gone.transaction_hash, block_hash=gone.block_hash)


_events = st.lists(
    st.tuples(
        st.sampled_from(("claim", "refund", "sweep", "reorg")),
        st.integers(0, 5),
        st.integers(0, 2**180),
        st.integers(-3, 3),
    ),
    max_size=12,
)
_work = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 2500), st.sampled_from((1, 1000))), min_size=1, max_size=4
)


class TestAnyHistory(TestCase):
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(work=_work, events=_events)
    def test_every_page_and_export_says_what_the_chain_said(
        self, work: list[tuple[int, int, int]], events: list[tuple[str, int, int, int]]
    ) -> None:
        factories.make_contracts()
        sessions = []
        for index, (tokens, price, precision) in enumerate(work):
            token = factories.USDC if index % 2 else factories.NATIVE
            session = factories.make_session(payment_token=token, price_per_token=price, price_precision=precision)
            factories.add_request(session, tokens=tokens)
            sessions.append(session)
        seen: dict[tuple[str, str], int] = {}
        for event in events:
            _apply(event, sessions=sessions, seen=seen)
        by = {kind: added_up(exported(kind)) for kind in Grouping}
        assert by[Grouping.TOKEN] == by[Grouping.JOB] == by[Grouping.DAY]
        columns = {"host": "credited", "treasury": "treasury", "refund": "refund", "sweep": "swept"}
        for (token, kind), amount in seen.items():
            assert by[Grouping.TOKEN].get(token, Counter())[columns[kind]] == amount
            rows = Earning.objects.filter(token=token, kind=kind)
            assert sum(row.signed_amount for row in rows) == amount
        tracked = {line.token: line.tokens_tracked for line in statements.statement()}
        for token in {session.payment_token for session in sessions}:
            mine = [session for session in sessions if session.payment_token == token]
            assert tracked[token] == sum(session.tokens_tracked for session in mine)
            worth = sum(session.worth(session.tokens_tracked) for session in mine)
            assert by[Grouping.TOKEN].get(token, Counter())["accrued"] == worth
        assert not list(ledger_rows.totals_add_up())


def _record(line: statements.Line) -> dict[str, Any]:
    return dict(next(exports.statement_records([line])))


def test_the_front_page_shows_what_the_command_exports(admin_client: Client) -> None:
    factories.make_world(sessions=3)
    text = re.sub(r"<[^>]+>", " ", admin_client.get(reverse("admin:index")).content.decode())
    (record,) = [record for record in exported(Grouping.TOKEN) if record["symbol"] == "USDC"]
    for column in ("accrued", "credited", "treasury"):
        assert int(record[column]) > 0
        assert format_amount(int(record[column]), USDC) in text
    assert f" {record['tokens_tracked']} " in re.sub(r"\s+", " ", text)


def test_the_admin_exports_what_the_command_exports(admin_client: Client) -> None:
    factories.make_world(sessions=2)
    for kind in Grouping:
        answer = admin_client.get(reverse("admin:settlement_earning_export", args=[kind.value]))
        assert answer["Content-Disposition"] == f'attachment; filename="earnings-{kind.value}.csv"'
        body = b"".join(answer.streaming_content).decode()  # type: ignore[attr-defined]
        assert list(csv.DictReader(io.StringIO(body))) == exported(kind)
    assert admin_client.get(reverse("admin:settlement_earning_export", args=["nonsense"])).status_code == 400


def test_every_movement_is_exported_and_what_was_taken_back_is_negative() -> None:
    session = factories.make_session()
    factories.make_contracts()
    gone = position()
    where = {"deployment": factories.DEPLOYMENT, "session_id": session.pk}
    earnings.book_claim(claim_at(gone), **where)
    earnings.reverse(transaction_hash=gone.transaction_hash, block_hash=gone.block_hash)
    out = io.StringIO()
    call_command("earnings", rows=True, csv=True, stdout=out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [int(row["amount"]) for row in rows] == [360_000, 40_000, -360_000, -40_000]
    assert {(row["symbol"], row["decimals"], row["job_id"]) for row in rows} == {("USDC", "6", str(session.job_id))}


def test_json_keeps_every_digit() -> None:
    session = factories.make_session(payment_token=factories.NATIVE)
    amount = 2**255 + 1
    claim = replace(claim_at(position(), host=amount), token=factories.NATIVE, treasury_position=None)
    earnings.book_claim(claim, deployment=factories.DEPLOYMENT, session_id=session.pk)
    out = io.StringIO()
    call_command("earnings", json=True, stdout=out)
    (line,) = json.loads(out.getvalue())
    assert line["credited"] == str(amount)
    empty = io.StringIO()
    call_command("earnings", by="day", json=True, since=_START.date(), until=_START.date(), stdout=empty)
    assert json.loads(empty.getvalue()) == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_becomes_a_formula(start: str) -> None:
    dangerous = f'{start}HYPERLINK("http://evil.example";"1")'
    text = "".join(exports.csv_lines([{"name": dangerous, "amount": -5}], columns=("name", "amount")))
    ((name, amount),) = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert name == f"'{dangerous}"
    assert amount == "-5"


def test_gas_without_a_job_is_in_a_line_of_its_own() -> None:
    earnings.book_sweep(7, token=factories.NATIVE, position=position(log_index=-1), deployment=factories.DEPLOYMENT)
    factories.add_checkpoint(factories.make_session())
    rest = [record for record in exported(Grouping.JOB) if not record["job_id"]]
    assert [(record["swept"], record["gas"]) for record in rest] == [("7", "0")]


def test_days_can_be_bounded() -> None:
    session = factories.make_session()
    for day in range(4):
        earnings.book_claim(
            claim_at(position()),
            deployment=factories.DEPLOYMENT,
            session_id=session.pk,
            at=_START + timedelta(days=day),
        )
    first, last = (_START + timedelta(days=1)).date(), (_START + timedelta(days=2)).date()
    lines = list(statements.statement(by=Grouping.DAY, since=first, until=last))
    assert [line.day for line in lines] == [first, last]
    assert {line.host for line in lines} == {360_000}


def test_a_large_ledger_is_summed_without_reading_its_rows() -> None:
    factories.make_world(sessions=1)
    with CaptureQueriesContext(connection) as few:
        list(statements.statement())
    for _ in range(3):
        factories.make_settled_session()
    with CaptureQueriesContext(connection) as many:
        list(statements.statement())
    assert len(many) == len(few)
    assert not any('FROM "settlement_earning"' in query["sql"] for query in many.captured_queries)


def test_inherited_tokens_are_counted_by_whoever_counted_them() -> None:
    session = factories.make_session(tokens_inherited=100, tokens_tracked=100, tokens_sealed=100, tokens_claimed=100)
    factories.add_request(session, tokens=20)
    (line,) = statements.statement()
    assert (line.tokens_tracked, line.tokens_claimed, line.accrued) == (20, 0, 20 * factories.PRICE)
    assert statements.token_counts().tracked == 20
    assert _record(line)["withdrawable"] == 0


def test_checkpoints_and_their_totals_agree() -> None:
    factories.make_world()
    credited = sum(row.host_amount or 0 for row in Checkpoint.objects.paid())
    (total,) = EarningTotal.objects.filter(scope="all", kind=EarningKind.HOST)
    assert total.amount == credited == 360_000
