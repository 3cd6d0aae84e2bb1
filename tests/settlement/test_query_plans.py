"""Pages of tables that grow with every token read what they show, by an index, and not the whole table."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs.models import InferenceRequest, Session, TokenUsage
from settlement.models import Attempt, Checkpoint, Earning, Receipt, Transaction
from tests import factories

pytestmark = pytest.mark.django_db

GROWING = (Session, InferenceRequest, TokenUsage, Checkpoint, Transaction, Attempt, Receipt, Earning)
TABLES = {model._meta.db_table for model in GROWING}


@pytest.fixture(autouse=True)
def _rows() -> None:
    cache.clear()
    factories.make_world()


def _listing(client: Client, model: type[models.Model], **query: str) -> tuple[str, tuple[Any, ...]]:
    """The statement that reads the rows of a list page, with its parameters."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    with (
        CaptureQueriesContext(
            connection,
        ) as captured,
        _Recorder() as recorder,
    ):
        assert client.get(address, query).status_code == 200
    assert captured.captured_queries
    found = [
        (sql, parameters)
        for sql, parameters in recorder.statements
        if f'FROM "{model._meta.db_table}"' in sql and "ORDER BY" in sql and "COUNT(*)" not in sql[:40]
    ]
    assert found, f"the list of {model.__name__} is not read in any order"
    sql, parameters = found[-1]
    # Rows that fit on one page are read without a limit, by the same statement otherwise.
    return sql if " LIMIT " in _outer(sql) else f"{sql} LIMIT 100", parameters


def _outer(sql: str) -> str:
    """The statement without what stands in parentheses: subqueries have conditions of their own."""
    inner = re.compile(r"\([^()]*\)")
    while inner.search(sql):
        sql = inner.sub("", sql)
    return sql


class _Recorder:
    """The statements with their parameters apart, to be explained."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self._wrapped = connection.execute_wrapper(self._record)

    def _record(self, execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        self.statements.append((sql, tuple(parameters or ())))
        return execute(sql, parameters, many, context)

    def __enter__(self) -> _Recorder:
        self._wrapped.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._wrapped.__exit__(*failure)


def _complaints(sql: str, parameters: tuple[Any, ...]) -> list[str]:
    """What of the plan reads or sorts a whole growing table."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # A small table is read whole; the question is whether there is any other way.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_sort = off")
            cursor.execute("SET LOCAL enable_incremental_sort = off")
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters)
            [(plan,)] = cursor.fetchall()
            return _postgres_complaints(plan if isinstance(plan, list) else json.loads(plan))
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        steps = [row[3] for row in cursor.fetchall()]
    # Without a condition, the listed table is read from its end until the page is full.
    has_condition = " WHERE " in _outer(sql)
    return [
        step
        for step in steps
        if "TEMP B-TREE FOR ORDER BY" in step
        or (has_condition and step.startswith("SCAN") and "USING" not in step and step.split()[1] in TABLES)
    ]


def _postgres_complaints(plan: Any) -> list[str]:
    found: list[str] = []
    nodes = [entry["Plan"] for entry in plan]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in TABLES:
            found.append(f"Seq Scan on {node['Relation Name']}")
        if "Sort" in node["Node Type"]:
            found.append(f"{node['Node Type']} by {node['Sort Key']}")
    return found


@pytest.mark.parametrize("model", GROWING)
def test_a_list_page_is_read_in_the_order_of_an_index(admin_client: Client, model: type[models.Model]) -> None:
    assert _complaints(*_listing(admin_client, model)) == []


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (Session, {"state__exact": "open"}),
        (Session, {"q": "163"}),
        (Checkpoint, {"state__exact": "failed"}),
        (Checkpoint, {"q": "163"}),
        (Transaction, {"state__exact": "sent"}),
        (Transaction, {"q": "0x" + "ab" * 32}),
        (Attempt, {"q": "0x" + "ab" * 32}),
        (Receipt, {"q": "0x" + "ab" * 32}),
        (InferenceRequest, {"state__exact": "running"}),
        (Earning, {"kind__exact": "host"}),
        (Earning, {"q": "163"}),
        (TokenUsage, {"q": "163"}),
    ],
)
def test_a_filter_or_an_exact_search_uses_an_index(
    admin_client: Client, model: type[models.Model], query: dict[str, str]
) -> None:
    complaints = [
        found for found in _complaints(*_listing(admin_client, model, **query)) if "Seq" in found or "SCAN" in found
    ]
    assert complaints == []


def test_the_probe_itself_finds_a_table_that_is_read_whole(admin_client: Client) -> None:
    table = TokenUsage._meta.db_table
    assert _complaints(f'SELECT * FROM "{table}" WHERE count = 7 ORDER BY created_at LIMIT 5', ()) != []
