"""An anvil for the session, a deployment for each module, and the chain put back after every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil
from tests.chain.world import World, build_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    tools = Path(os.environ.get("FABSTIR_TOOLS_DIR") or ROOT / "var" / "tools")
    return fetch_anvil(tools_dir=tools, progress=print)


@pytest.fixture(scope="module")
def anvil_url(anvil_binary: Path) -> Iterator[str]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield anvil.url


@pytest.fixture(scope="module")
def deployed_world(anvil_url: str) -> World:
    return build_world(anvil_url)


@pytest.fixture
def world(deployed_world: World) -> Iterator[World]:
    before = local.snapshot(deployed_world.url)
    yield deployed_world
    local.revert(deployed_world.url, snapshot_id=before)
