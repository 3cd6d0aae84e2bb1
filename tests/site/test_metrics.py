"""The figures for Prometheus: the ledger's, and nobody's but the operator's to read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from fabstir_site.observing import SERVING_METRICS
from settlement import ledger, statements
from settlement.models import CheckpointState, EarningKind, EarningTotal
from tests import factories

pytestmark = pytest.mark.django_db


def families_of(client: Client) -> list[Metric]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.content.decode()))
    assert len({family.name for family in families}) == len(families)
    return families


def samples(client: Client) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{name}={json.dumps(value)}" for name, value in sample.labels.items())): sample.value
        for family in families_of(client)
        for sample in family.samples
    }


def test_the_figures_are_those_of_every_other_page() -> None:
    factories.make_world(sessions=2)
    ledger.check_database()
    found = samples(Client())
    counts = statements.token_counts()
    assert found["fabstir_tokens_tracked", ""] == counts.tracked > 0
    assert found["fabstir_tokens_claimed", ""] == counts.claimed > 0
    assert found["fabstir_checkpoints", 'state="failed"'] == 2
    assert found["fabstir_checkpoints", f'state="{CheckpointState.WITHDRAWN}"'] == 0
    label = f'deployment="{factories.DEPLOYMENT}",token="{factories.USDC}"'
    (total,) = EarningTotal.objects.filter(scope="all", kind=EarningKind.HOST)
    assert found["fabstir_earnings_host_base_units", label] == total.amount == 720_000


def test_a_mismatch_is_a_figure_of_its_invariant_until_it_is_repaired() -> None:
    factories.make_world()
    assert not any(name == "fabstir_ledger_mismatch" for name, _ in samples(Client()))
    total = EarningTotal.objects.filter(scope="all", kind=EarningKind.HOST)
    total.update(booked=1)
    ledger.check_database()
    assert samples(Client())["fabstir_ledger_mismatch", 'invariant="I8"'] == 1
    assert samples(Client())["fabstir_ledger_mismatch", 'invariant="I1"'] == 0
    total.update(booked=360_000)
    ledger.check_database()
    assert samples(Client())["fabstir_ledger_mismatch", 'invariant="I8"'] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"REMOTE_ADDR": "203.0.113.7"},
        {"REMOTE_ADDR": ""},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.7"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=203.0.113.7"},
        {"REMOTE_ADDR": "::ffff:203.0.113.7"},
    ],
)
def test_strangers_find_nothing_there(headers: dict[str, str]) -> None:
    assert Client(headers=None, **headers).get("/metrics").status_code == 404
    assert Client(**{**headers, "REMOTE_ADDR": "127.0.0.1"}).get("/metrics").status_code == (
        404 if len(headers) > 1 else 200
    )


def test_an_operator_reads_them_from_anywhere(admin_client: Client) -> None:
    assert admin_client.get("/metrics", REMOTE_ADDR="203.0.113.7").status_code == 200
    somebody = Client(REMOTE_ADDR="203.0.113.7")
    somebody.force_login(User.objects.create_user("somebody"))
    assert somebody.get("/metrics").status_code == 404


def test_the_figures_are_read_only() -> None:
    assert Client().post("/metrics").status_code == 405


def documented() -> dict[str, str]:
    """Names and types in the tables of ``docs/metrics.md``."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    return dict(re.findall(r"^\| `(fabstir_\w+)` \| (\w+) \|", text, re.MULTILINE))


def test_the_documentation_lists_exactly_what_is_shown() -> None:
    factories.make_world()
    ledger.check_database()
    answer = Client().get("/metrics").content.decode()
    shown = {family.name: family.type for family in text_string_to_metric_families(answer)}
    # Those of serving that nothing has happened to yet are known by their registry.
    shown |= {family.name: family.type for family in SERVING_METRICS.registry.collect()}
    assert documented() == {f"{name}_total" if kind == "counter" else name: kind for name, kind in shown.items()}


def test_no_label_can_take_any_number_of_values() -> None:
    factories.make_world()
    labels = {name for family in families_of(Client()) for sample in family.samples for name in sample.labels}
    assert labels <= {
        *("model_name", "finished_reason", "code", "le", "version", "git_sha", "chain_id"),
        *("state", "deployment", "token", "invariant", "part"),
    }
