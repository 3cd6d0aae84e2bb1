"""Deployment records, and telling a deployment from another chain's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from settlement.chain import local
from settlement.chain.deployment import (
    DEPLOYMENTS_DIR,
    HOST_GENERATION,
    MISSION_GENERATION,
    Deployment,
    DeploymentError,
    addresses,
    is_deployed,
    load_deployment,
)
from tests.chain.world import World, build_world


def test_base_sepolia_is_the_marketplace_of_the_mission_documents() -> None:
    deployment = load_deployment(DEPLOYMENTS_DIR / "84532.json")
    assert deployment.chain_id == 84532
    assert deployment.generation == MISSION_GENERATION
    assert deployment.job_marketplace == "0x1273E6358aa52Bb5B160c34Bf2e617B745e4A944"
    assert deployment.proof_system == "0x2ACcc60893872A499700908889B38C5420CBcFD1"
    assert deployment.usdc == "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
    assert deployment.explorer == "https://sepolia.basescan.org"


def test_a_deployment_survives_its_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "31337.json"
    path.write_text(world.deployment.to_json())
    assert load_deployment(path) == world.deployment
    assert world.deployment.generation == HOST_GENERATION
    assert len(addresses(world.deployment)) == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"contracts": {}}',
        '{"contracts": {"jobMarketplace": null}, "chainId": 1}',
        '{"contracts": {"jobMarketplace": "0x12"}, "chainId": 1, "generation": "x"}',
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DeploymentError, match=r"broken\.json"):
        load_deployment(path)


def test_a_deployment_is_recognised_only_where_it_is(world: World) -> None:
    deployment = world.deployment
    assert is_deployed(world.w3, deployment)
    assert not is_deployed(world.w3, replace(deployment, chain_id=1))
    assert not is_deployed(world.w3, replace(deployment, block_hash=f"0x{'00' * 32}"))
    assert not is_deployed(world.w3, replace(deployment, deployed_at_block=10**6))
    assert not is_deployed(world.w3, replace(deployment, job_marketplace=world.user))
    assert not is_deployed(world.w3, replace(deployment, job_marketplace=world.usdc.address))
    other = replace(deployment, generation=MISSION_GENERATION, job_marketplace=world.usdc.address)
    assert is_deployed(world.w3, other)


def test_the_first_block_is_recorded(world: World) -> None:
    block = world.w3.eth.get_block(world.deployment.deployed_at_block or 0)
    assert world.deployment.block_hash == f"0x{bytes(block['hash']).hex()}"
    assert bytes(world.w3.eth.get_code(world.marketplace.address, int(block["number"]) - 1)) == b""


def test_a_restarted_chain_still_has_its_deployment(anvil_binary: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with local.TemporaryAnvil(binary=anvil_binary, state_file=state) as anvil:
        first = build_world(anvil.url)
        job_id = first.open_usdc()
    with local.TemporaryAnvil(binary=anvil_binary, state_file=state) as anvil:
        again = replace(first, url=anvil.url, w3=type(first.w3)(type(first.w3).HTTPProvider(anvil.url)))
        assert is_deployed(again.w3, again.deployment)
        assert again.job(job_id).deposit == 1_000_000


def test_round_trip_needs_no_optional_contract() -> None:
    bare = Deployment(
        chain_id=5,
        generation="x",
        job_marketplace=load_deployment(DEPLOYMENTS_DIR / "84532.json").job_marketplace,
    )
    assert Deployment.from_json(bare.to_json()) == bare
