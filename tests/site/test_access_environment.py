"""The environment's word on who may use the host."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fabstir_site import environment
from fabstir_site.environment import ConfigurationError


def load(tmp_path: Path, **variables: str) -> Any:
    return environment.load({"FABSTIR_DATA_DIR": str(tmp_path), **variables}).access


@pytest.mark.parametrize(
    ("variables", "spending", "requests"),
    [
        ({}, "open", None),
        ({"RPC_URL": "http://127.0.0.1:1"}, "depositor", 600),
        ({"RPC_URL": "http://127.0.0.1:1", "CHAIN_ID": "8453"}, "depositor", 600),
        ({"RPC_URL": "http://127.0.0.1:1", "CHAIN_ID": "31337"}, "open", None),
        ({"FABSTIR_SPENDING": "first-claim", "FABSTIR_REQUESTS_PER_MINUTE": "5"}, "first-claim", 5),
    ],
)
def test_deposits_are_guarded_wherever_they_are_worth_something(tmp_path, variables, spending, requests) -> None:
    loaded = load(tmp_path, **variables)
    assert (loaded.spending, loaded.requests_per_minute) == (spending, requests)


def test_lists_are_read(tmp_path) -> None:
    pairs = f"0x{'AB' * 20}:0x{'12' * 20},0x{'ab' * 20}:0x{'34' * 20}"
    loaded = load(tmp_path, FABSTIR_TRUSTED_PROXIES="127.0.0.1,10.0.0.0/8", FABSTIR_SESSION_AUTHORIZERS=pairs)
    assert loaded.trusted_proxies == (ip_network("127.0.0.1"), ip_network("10.0.0.0/8"))
    assert loaded.session_authorizers == {"0x" + "ab" * 20: {"0x" + "12" * 20, "0x" + "34" * 20}}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FABSTIR_SPENDING", "everybody"),
        ("FABSTIR_REQUIRE_API_KEY", "maybe"),
        ("FABSTIR_REQUESTS_PER_MINUTE", "-1"),
        ("FABSTIR_TOKENS_PER_MINUTE", "many"),
        ("FABSTIR_TRUSTED_PROXIES", "proxy.example"),
        ("FABSTIR_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("FABSTIR_SESSION_AUTHORIZERS", "0x12:0x34"),
        ("FABSTIR_SESSION_AUTHORIZERS", "0x" + "ab" * 20),
    ],
)
def test_what_is_malformed_stops_the_start(tmp_path, variable, value) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load(tmp_path, **{variable: value})
