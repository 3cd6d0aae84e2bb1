"""One anvil with a deployed marketplace for the session, and the node's application set up on it for each test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import LazySettings

from fabstir_site.serving import SERVING, SOCKETS
from jobs.conversations import Conversations
from jobs.inference.scripted import ScriptedEngine
from jobs.kept_keys import KeptKeys
from nodes.models import ServedModel
from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil
from settlement.host_chain import host_chain
from tests.flows.flow import Flow, endless
from tests.flows.world import FlowWorld, build_flow_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    tools = Path(os.environ.get("FABSTIR_TOOLS_DIR") or ROOT / "var" / "tools")
    return fetch_anvil(tools_dir=tools, progress=print)


@pytest.fixture(scope="session")
def flow_world(anvil_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowWorld]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield build_flow_world(anvil.url, folder=tmp_path_factory.mktemp("flows"))


@pytest.fixture(scope="session", autouse=True)
def _connections_of_ended_threads(django_db_setup: None) -> Iterator[None]:
    """PostgreSQL drops no database that has connections, and those of an ended thread live until collected."""
    yield
    gc.collect()


@pytest.fixture
def flow(
    flow_world: FlowWorld,
    transactional_db: None,
    settings: LazySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Flow]:
    """The node on a real chain, with an in-process scripted engine."""
    settings.ENVIRONMENT = replace(
        settings.ENVIRONMENT,
        data_dir=flow_world.folder,
        rpc_urls=(flow_world.url,),
        chain_id=local.CHAIN_ID,
        embedded_chain=True,
        host_private_key=flow_world.key,
    )
    monkeypatch.setattr("django.utils.timezone.now", flow_world.clock.now)
    host_chain.cache_clear()
    engine = ScriptedEngine(endless(), model="scripted")
    monkeypatch.setattr(SERVING, "engine", engine)
    monkeypatch.setattr(SERVING, "serve_unpaid", True)
    monkeypatch.setattr(SERVING, "max_completion_tokens", 32_768)
    # Every test's chain counts its jobs from 1: what was said about job 1 of the last one is not of this one.
    kept_seconds = settings.ENVIRONMENT.disconnect_grace_seconds
    monkeypatch.setattr(SOCKETS, "conversations", Conversations(kept_seconds=kept_seconds))
    monkeypatch.setattr(SOCKETS, "keys", KeptKeys(kept_seconds=kept_seconds))
    ServedModel.objects.create(
        id="scripted",
        aliases=["default", "tiny-vicuna", "tiny-vicuna-1b"],
        path="/nowhere",
        source="test",
        architecture="scripted",
        quantization="none",
        context_length=2048,
        vocabulary_size=256,
        manifest_sha256="0" * 64,
        is_default=True,
    )
    flow = Flow(chain_world=flow_world, engine=engine)
    with flow.runner:
        yield flow
        flow.run(SERVING.shut_down())
    host_chain.cache_clear()


@pytest.fixture
def node_anvil(anvil_binary: Path) -> Iterator[str]:
    """A chain on the wall clock, for tests with real processes."""
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield anvil.url


@pytest.fixture(scope="module")
def anvil_of_module(anvil_binary: Path) -> Iterator[str]:
    """As ``node_anvil``, for all tests of a module."""
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        yield anvil.url
