"""Links into block explorers, and none where there is no explorer."""

from __future__ import annotations

import pytest
from eth_utils.address import to_checksum_address

from settlement.chain.deployment import Deployment
from settlement.explorer import chain_id_of, explorer_of

HASH = "0x" + "12" * 32
ADDRESS = "0x" + "34" * 20


@pytest.mark.parametrize(
    ("chain_id", "base"), [(8453, "https://basescan.org"), (84532, "https://sepolia.basescan.org")]
)
def test_public_chains_have_their_explorer(chain_id: int, base: str) -> None:
    explorer = explorer_of(chain_id)
    assert explorer.transaction(HASH) == f"{base}/tx/{HASH}"
    assert explorer.address(ADDRESS) == f"{base}/address/{ADDRESS}"
    assert explorer.block(7) == f"{base}/block/7"


@pytest.mark.parametrize("chain_id", [31337, 1, None])
def test_other_chains_have_no_links(chain_id: int | None) -> None:
    explorer = explorer_of(chain_id)
    assert explorer.transaction(HASH) is None
    assert explorer.address(ADDRESS) is None
    assert explorer.block(7) is None


def test_deployment_names_its_own_explorer() -> None:
    deployment = Deployment(
        chain_id=84532,
        generation="fabstir-host-1",
        job_marketplace=to_checksum_address(ADDRESS),
        explorer="https://explorer.example/",
    )
    assert explorer_of(84532, deployment=deployment).block(1) == "https://explorer.example/block/1"
    assert explorer_of(8453, deployment=deployment).block(1) == "https://basescan.org/block/1"


def test_chain_of_a_deployment_name() -> None:
    assert chain_id_of(f"84532:{ADDRESS}") == 84532
    assert chain_id_of(f"31337:{ADDRESS}:0x1234") == 31337
    assert chain_id_of("") is None
