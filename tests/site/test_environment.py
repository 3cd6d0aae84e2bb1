"""Every variable: valid, empty, malformed; what they mean together; what is derived; what is kept secret."""

from __future__ import annotations

import json
import os
import stat
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from fabstir_site.environment import Addresses, ConfigurationError, Environment, load, socket_path

ADDRESS = "0x" + "aB" * 20
KEY = "0x" + "5e" * 32
NUMBERS = {
    "FABSTIR_CONFIRMATIONS": "limits.confirmations",
    "FABSTIR_MAX_FEE_PER_GAS_WEI": "limits.max_fee_per_gas",
    "FABSTIR_MAX_TRANSACTION_COST_WEI": "limits.max_cost",
    "FABSTIR_DAILY_GAS_BUDGET_WEI": "limits.daily_budget",
    "FABSTIR_MIN_BASE_FEE_WEI": "limits.min_base_fee",
    "FABSTIR_MIN_PRIORITY_FEE_WEI": "limits.min_priority_fee",
    "FABSTIR_MAX_IN_FLIGHT": "limits.max_in_flight",
    "FABSTIR_RPC_TIMEOUT_SECONDS": "rpc_timeout_seconds",
    "FABSTIR_VALUE_TO_GAS_RATIO": "value_to_gas_ratio",
    "FABSTIR_NATIVE_PRICE_USDC": "native_price_usdc",
    "FABSTIR_CHECKPOINT_MAX_AGE_SECONDS": "checkpoint_max_age_seconds",
    "FABSTIR_DISCONNECT_GRACE_SECONDS": "disconnect_grace_seconds",
    "FABSTIR_IDLE_CLOSE_SECONDS": "idle_close_seconds",
    "FABSTIR_MAX_COMPLETION_TOKENS": "max_completion_tokens",
    "FABSTIR_ENGINE_QUEUE": "engine_queue_size",
    "CHECKPOINT_THRESHOLD": "checkpoint_threshold",
    "API_PORT": "api_port",
}
MAY_BE_ZERO = ("FABSTIR_DISCONNECT_GRACE_SECONDS", "FABSTIR_MIN_PRIORITY_FEE_WEI", "FABSTIR_VALUE_TO_GAS_RATIO")
CONTRACTS = {
    "CONTRACT_JOB_MARKETPLACE": "JobMarketplace",
    "CONTRACT_HOST_EARNINGS": "HostEarnings",
    "CONTRACT_PROOF_SYSTEM": "ProofSystem",
    "CONTRACT_NODE_REGISTRY": "NodeRegistry",
    "CONTRACT_MODEL_REGISTRY": "ModelRegistry",
    "USDC_TOKEN": "USDC",
}
TEXTS = (
    "FABSTIR_SECRET_KEY",
    "FABSTIR_API_HOST",
    "FABSTIR_CONTRACT_GENERATION",
    "FABSTIR_COMPUTE_TYPE",
    "FABSTIR_DEVICE",
    "FABSTIR_LOG_FORMAT",
    "FABSTIR_ALLOWED_HOSTS",
    "FABSTIR_MODEL_ALIASES",
    "FABSTIR_DEBUG",
    "FABSTIR_SERVE_UNPAID",
    "FABSTIR_DATA_DIR",
    "FABSTIR_TOOLS_DIR",
    "DATABASE_URL",
    "REDIS_URL",
    "RPC_URL",
    "CHAIN_ID",
    "HOST_PRIVATE_KEY",
    "HOST_KEYSTORE",
    "HOST_KEYSTORE_PASSWORD_FILE",
)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(**environ: str) -> Environment:
        return load({"FABSTIR_DATA_DIR": str(tmp_path), **environ})

    return read


def _refused(read: Any, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read(**environ)
    return str(refused.value)


@pytest.mark.parametrize("variable", [*NUMBERS, *CONTRACTS, *TEXTS])
@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_variable_is_an_error_that_names_it(read: Any, variable: str, value: str) -> None:
    assert f"{variable} is set but empty" in _refused(read, **{variable: value})


@pytest.mark.parametrize(("variable", "field"), NUMBERS.items())
def test_numbers_are_read(read: Any, variable: str, field: str) -> None:
    assert attrgetter(field)(read(**{variable: " 250 "})) == 250


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize("value", ["-1", "1.5", "1e3", "ten", "0x10", "1_000", "9" * 31, "²"])
def test_what_is_no_number_is_named(read: Any, variable: str, value: str) -> None:
    assert variable in _refused(read, **{variable: value})


@pytest.mark.parametrize("variable", [name for name in NUMBERS if name not in MAY_BE_ZERO])
def test_zero_is_refused_where_it_makes_no_sense(read: Any, variable: str) -> None:
    assert f"{variable} must be 1 or more" in _refused(read, **{variable: "0"})


@pytest.mark.parametrize("variable", MAY_BE_ZERO)
def test_zero_is_taken_where_it_means_none(read: Any, variable: str) -> None:
    assert attrgetter(NUMBERS[variable])(read(**{variable: "0"})) == 0


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("FABSTIR_EXPOSURE_PER_JOB", "exposure_per_job"),
        ("FABSTIR_EXPOSURE_TOTAL", "exposure_total"),
    ],
)
def test_limits_of_money_name_their_kind(read: Any, variable: str, field: str) -> None:
    assert getattr(read(), field) == {}
    found = getattr(read(**{variable: "native=1000000000000000000, usdc=5000000"}), field)
    assert found == {"native": 10**18, "usdc": 5_000_000}
    for wrong in ("5", "eth=5", "usdc=", "usdc=1.5", "usdc=1,usdc=2", "usdc=-1"):
        assert variable in _refused(read, **{variable: wrong})


def test_a_sweep_needs_an_address_to_go_to(read: Any) -> None:
    assert "FABSTIR_SWEEP_TO" in _refused(read, FABSTIR_SWEEP_ABOVE="usdc=5000000")
    swept = read(FABSTIR_SWEEP_ABOVE="usdc=5000000", FABSTIR_SWEEP_TO=ADDRESS)
    assert (swept.sweep_above, swept.sweep_to) == ({"usdc": 5_000_000}, ADDRESS)


def test_finality_and_the_l1_fee_oracle_follow_the_chain(read: Any) -> None:
    assert (read().limits.finality, read().limits.fee_oracle) == ("depth", None)
    base = read(RPC_URL="https://one.example", FABSTIR_FINALITY="safe")
    assert (base.limits.finality, base.limits.fee_oracle) == ("safe", "0x420000000000000000000000000000000000000F")
    assert "FABSTIR_FINALITY" in _refused(read, FABSTIR_FINALITY="soon")


@pytest.mark.parametrize(("variable", "contract"), CONTRACTS.items())
def test_contract_addresses_override_by_name(read: Any, variable: str, contract: str) -> None:
    assert read(**{variable: ADDRESS}).contract_overrides == {contract: ADDRESS}
    for wrong in ("0x12", ADDRESS[2:], ADDRESS + "0", "0x" + "g" * 40):
        assert variable in _refused(read, **{variable: wrong})


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("API_PORT", "65536", "TCP port"),
        ("CHECKPOINT_THRESHOLD", "99", "100 or more"),
        ("CHAIN_ID", "base", "whole number"),
        ("FABSTIR_DEBUG", "maybe", "on or off"),
        ("FABSTIR_SERVE_UNPAID", "2", "on or off"),
        ("FABSTIR_DEVICE", "gpu", "auto, cpu, cuda"),
        ("FABSTIR_LOG_FORMAT", "xml", "text, json"),
        ("FABSTIR_ALLOWED_HOSTS", "a,,b", "without empty items"),
        ("FABSTIR_MODEL_ALIASES", ",", "without empty items"),
        ("DATABASE_URL", "mysql://localhost/x", "postgres"),
        ("REDIS_URL", "http://localhost", "redis, rediss"),
        ("RPC_URL", "ws://localhost:8545", "http, https"),
        ("RPC_URL", "localhost:8545", "http, https"),
        ("RPC_URL", "http://", "http, https"),
        ("HOST_KEYSTORE", "/nowhere/keystore", "not a file"),
        ("HOST_KEYSTORE_PASSWORD_FILE", "/", "not a file"),
        ("FABSTIR_DATA_DIR", "/etc/hostname", "is a file"),
        ("FABSTIR_TOOLS_DIR", "/etc/hostname", "is a file"),
        ("FABSTIR_DATA_DIR", "/tmp/" + "x" * 300, "path"),
        ("FABSTIR_TOOLS_DIR", "~no-such-user-here/x", "path"),
        ("HOST_KEYSTORE", "/tmp/" + "x" * 300, "path"),
    ],
)
def test_a_malformed_value_is_refused_with_what_it_should_be(read: Any, variable: str, value: str, words: str) -> None:
    message = _refused(read, **{variable: value})
    assert message.startswith(variable)
    assert words in message


@pytest.mark.parametrize(
    ("variable", "value", "secret"),
    [
        ("HOST_PRIVATE_KEY", "5e" * 31, "5e5e"),
        ("HOST_PRIVATE_KEY", "0x" + "5e" * 33, "5e5e"),
        ("HOST_PRIVATE_KEY", "my words of the wallet", "wallet"),
        ("RPC_URL", "https://rpc.example/v2/tokenoflife,,", "tokenoflife"),
        ("RPC_URL", "ftp://user:hunter2@rpc.example", "hunter2"),
        ("RPC_URL", "http://[tokenoflife", "tokenoflife"),
        ("RPC_URL", "http://rpc.example:tokenoflife/", "tokenoflife"),
        ("REDIS_URL", "http://:hunter2@localhost", "hunter2"),
        ("REDIS_URL", "redis://localhost:hunter2", "hunter2"),
        ("DATABASE_URL", "mysql://me:hunter2@db/x", "hunter2"),
        ("DATABASE_URL", "postgres://me:hun/ter2@db/x", "ter2"),
        ("DATABASE_URL", "postgres://me@db:hunter2/x", "hunter2"),
    ],
)
def test_a_secret_never_reaches_the_message(read: Any, variable: str, value: str, secret: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(**{variable: value})
    assert variable in str(refused.value)
    assert secret not in str(refused.value)


def test_secrets_are_in_no_representation(read: Any) -> None:
    environment = read(
        HOST_PRIVATE_KEY=KEY,
        FABSTIR_SECRET_KEY="django-secret-value",
        RPC_URL="https://rpc.example/v2/tokenoflife",
        DATABASE_URL="postgres://me:hunter2@db/x",
        REDIS_URL="redis://:hunter3@localhost/0",
    )
    assert environment.host_private_key == KEY
    for secret in (KEY, KEY[2:], "django-secret-value", "tokenoflife", "hunter2", "hunter3"):
        assert secret not in repr(environment)


def test_without_any_variable_everything_is_embedded(tmp_path: Path, read: Any) -> None:
    environment = read()
    assert environment.embedded_chain
    assert environment.embedded_broker
    assert environment.serve_unpaid
    assert (environment.chain_id, environment.limits.confirmations, environment.checkpoint_threshold) == (31337, 1, 100)
    assert (environment.api_host, environment.api_port) == ("127.0.0.1", 8080)
    assert (environment.rpc_urls, environment.redis_url, environment.database_url) == ((), None, None)
    assert environment.host_private_key is None
    assert environment.tools_dir == tmp_path / "tools"
    assert environment.local_deployment_file == tmp_path / "chain" / "deployment-31337.json"


def test_a_node_of_ones_own_changes_what_follows_from_it(read: Any) -> None:
    environment = read(RPC_URL="https://one.example, https://two.example")
    assert environment.rpc_urls == ("https://one.example", "https://two.example")
    assert (environment.chain_id, environment.limits.confirmations) == (84532, 12)
    assert not environment.embedded_chain
    assert not environment.serve_unpaid
    assert environment.embedded_broker
    assert environment.api_host == "0.0.0.0"


def test_addresses_of_embedded_parts_come_from_their_supervisor(tmp_path: Path, read: Any) -> None:
    path = Addresses.path(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({"redis_url": "redis://:x@127.0.0.1:7001/0", "rpc_url": "http://127.0.0.1:7002"}))
    environment = read()
    assert (environment.redis_url, environment.rpc_urls) == ("redis://:x@127.0.0.1:7001/0", ("http://127.0.0.1:7002",))
    given = read(REDIS_URL="redis://elsewhere/1", RPC_URL="http://elsewhere:8545")
    assert (given.redis_url, given.rpc_urls) == ("redis://elsewhere/1", ("http://elsewhere:8545",))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", "[1, 2]"])
def test_a_damaged_address_file_is_named(tmp_path: Path, read: Any, content: str) -> None:
    path = Addresses.path(tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    if content == "[]":
        assert read().redis_url is None
    else:
        assert str(path) in _refused(read)


def test_variables_that_exclude_each_other_are_refused(tmp_path: Path, read: Any) -> None:
    keystore = tmp_path / "keystore.json"
    keystore.write_text("{}")
    assert "HOST_KEYSTORE_PASSWORD_FILE" in _refused(read, HOST_KEYSTORE=str(keystore))
    both = {"HOST_KEYSTORE": str(keystore), "HOST_KEYSTORE_PASSWORD_FILE": str(keystore)}
    assert read(**both).host_keystore == keystore
    assert "not both" in _refused(read, HOST_PRIVATE_KEY=KEY, **both)
    assert "RPC_URL is not set" in _refused(read, CHAIN_ID="84532")
    assert read(CHAIN_ID="31337").chain_id == 31337
    assert read(CHAIN_ID="8453", RPC_URL="http://x").chain_id == 8453


def test_a_directory_that_cannot_be_written_is_named(read: Any) -> None:
    assert "FABSTIR_DATA_DIR /etc/hostname/x is not writable" in _refused(read, FABSTIR_DATA_DIR="/etc/hostname/x")
    assert "FABSTIR_DATA_DIR /proc/x is not writable" in _refused(read, FABSTIR_DATA_DIR="/proc/x")


def test_the_secret_key_is_made_once_and_only_the_owner_reads_it(tmp_path: Path, read: Any) -> None:
    first = read().secret_key
    path = tmp_path / "keys" / "django-secret"
    assert len(first) >= 50
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read().secret_key == first
    assert read(FABSTIR_SECRET_KEY="given").secret_key == "given"


def test_a_path_too_long_for_a_socket_gets_a_short_stand_in(tmp_path: Path) -> None:
    short = Path("/tmp/run/engine.sock")
    assert socket_path(short) == short
    deep = tmp_path / ("d" * 100) / "run"
    stand_in = socket_path(deep / "engine.sock")
    assert len(os.fsencode(stand_in)) <= 100
    assert stand_in.name == "engine.sock"
    assert stand_in == socket_path(deep / "engine.sock")
    assert stand_in != socket_path(deep / "supervisor.sock")
    assert load({"FABSTIR_DATA_DIR": str(deep)}).engine_socket == socket_path(deep / "run" / "engine.sock")
