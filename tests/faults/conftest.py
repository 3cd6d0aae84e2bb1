"""A laboratory on an anvil of its own, and a chain process that can be killed and started again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil
from tests.faults.chain_process import ChainProcess
from tests.faults.laboratory import Laboratory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    tools = Path(os.environ.get("FABSTIR_TOOLS_DIR") or ROOT / "var" / "tools")
    return fetch_anvil(tools_dir=tools, progress=print)


@pytest.fixture(scope="module")
def laboratory(anvil_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("laboratory")
    with local.TemporaryAnvil(binary=anvil_binary) as anvil, Laboratory(anvil.url, folder=folder) as built:
        yield built


@pytest.fixture
def chain_process(anvil_binary: Path, tmp_path: Path) -> Iterator[ChainProcess]:
    chain = ChainProcess(binary=anvil_binary, folder=tmp_path)
    chain.start()
    yield chain
    chain.kill()
