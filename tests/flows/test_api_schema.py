"""The whole OpenAPI document, played against the running node: no server error, and every answer as described."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis

from fabstir_site.urls import DESCRIBED, urlpatterns
from jobs import openapi
from jobs.openapi_shapes import Limits
from settlement.chain import local
from tests.flows.node import ROOT, Node, drop_node, make_node

SEED = 1
EXAMPLES = 12
PHASES = "examples,coverage,fuzzing"
METHODS = {"get", "post", "put", "patch", "delete"}

UNDESCRIBED = {
    "": "leads a browser to the admin pages",
    "admin/": "pages for operators, with forms and cookies: no interface for programs",
    "metrics": "strangers are told that it does not exist; docs/metrics.md describes it to operators",
    "v1/v1/inference": "/v1/inference once more, for clients that make its address up",
}


@pytest.fixture(scope="module")
def node(anvil_binary: Path) -> Iterator[Node]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        node = make_node(anvil.url, tokens=12, replicas=4)
        node.start("web")
        yield node
        drop_node(node)


def api_key(node: Node) -> str:
    command = [sys.executable, "manage.py", "api_keys", "create", "schema", "--scope", "usage"]
    return subprocess.run(
        command, cwd=ROOT, env=node.environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def described() -> dict[str, Any]:
    return openapi.document(Limits(most_tokens=100, models=("scripted",), vocabulary_size=256), parts=DESCRIBED)


def test_every_answer_is_as_the_document_says_and_none_is_a_server_error(node: Node, tmp_path: Path) -> None:
    # From a file: schemathesis leaves out the very address that it reads a document from.
    document = requests.get(node.address("/v1/openapi.json"), timeout=30)
    (tmp_path / "openapi.json").write_text(document.text)
    options = ["--url", node.address(""), "--seed", str(SEED), "--max-examples", str(EXAMPLES), "--phases", PHASES]
    options += ["--generation-database", "none", "--output-sanitize", "false", "--no-color"]
    environ = {"SCHEMATHESIS_HOOKS": "tests.flows.schema_formats", "PYTHONPATH": str(ROOT), "API_KEY": api_key(node)}
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", "openapi.json", *options],
        env={**os.environ, **environ}, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    operations = sum(len(METHODS & set(methods)) for methods in document.json()["paths"].values())
    assert re.search(rf"Selected: {operations}/{operations}\n\s+Tested: {operations}\n", done.stdout), done.stdout
    assert "Traceback" not in node.log("web"), node.log("web")
    assert node.running() == 0


def test_the_document_is_valid_and_what_the_node_serves(node: Node) -> None:
    served = requests.get(node.address("/v1/openapi.json"), timeout=30).json()
    schemathesis.openapi.from_dict(served).validate()
    assert served["paths"].keys() == described()["paths"].keys()
    assert served["components"]["schemas"].keys() == described()["components"]["schemas"].keys()


def test_every_route_is_described_or_left_out_for_a_reason() -> None:
    routed = {str(each.pattern) for each in urlpatterns}
    found = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) for route in routed}
    paths = {path.removeprefix("/") for path in described()["paths"]}
    assert found - set(UNDESCRIBED) == paths
    assert set(UNDESCRIBED) <= found
    assert all(UNDESCRIBED.values())


def test_every_operation_names_what_refuses_and_nothing_is_named_twice_or_in_vain() -> None:
    whole = described()
    operations = [each for methods in whole["paths"].values() for each in methods.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in whole["tags"]}
    assert {tag for each in operations for tag in each["tags"]} == tags
    for each in operations:
        assert {"200", "400", "500"} <= each["responses"].keys(), each["operationId"]
    named = re.findall(r"#/components/schemas/(\w+)", str(whole))
    assert set(named) == set(whole["components"]["schemas"])
