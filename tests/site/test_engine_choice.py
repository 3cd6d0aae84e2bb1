"""The node's own engine, or an inference server elsewhere: chosen in one place, by the environment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import LazySettings

from fabstir_site import embedded, environment, known_secrets, provisioning
from fabstir_site.environment import Addresses, ConfigurationError, Environment
from jobs.engine_choice import make_engine
from jobs.inference.client import EngineClient
from jobs.inference.openai_http import OpenAIHttpEngine
from nodes import catalog, remote_models
from nodes.models import ServedModel
from tests.fakes.openai_server import FakeServer, serving

ELSEWHERE = {"FABSTIR_ENGINE_KIND": "openai_http", "FABSTIR_ENGINE_URL": "https://gpu.example:8000/v1"}


def loaded(tmp_path: Path, **variables: str) -> Environment:
    return environment.load({"FABSTIR_DATA_DIR": str(tmp_path), **variables})


def test_the_environment_names_the_server_and_hides_what_opens_it(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        **ELSEWHERE,
        FABSTIR_ENGINE_API_KEY="key-987654",
        FABSTIR_ENGINE_MODELS="small=org/Model-1B, large=org/Model-70B",
        FABSTIR_ENGINE_QUEUE="7",
    )
    upstream = found.engine_upstream
    assert upstream is not None
    assert upstream.models == {"small": "org/Model-1B", "large": "org/Model-70B"}
    assert (upstream.root, upstream.in_flight) == ("https://gpu.example:8000", 7)
    assert "key-987654" not in repr(found)
    assert "key-987654" in known_secrets.secrets_of(found)


def test_a_password_in_the_address_is_a_secret_too(tmp_path: Path) -> None:
    url = "https://me:hunter%402@gpu.example/prefix/v1/"
    found = loaded(tmp_path, **{**ELSEWHERE, "FABSTIR_ENGINE_URL": url})
    assert found.engine_upstream is not None
    assert found.engine_upstream.root == "https://gpu.example/prefix"
    assert "hunter" not in repr(found)
    assert {"hunter%402", "hunter@2"} <= known_secrets.secrets_of(found)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"FABSTIR_ENGINE_KIND": "openai_http"}, "set FABSTIR_ENGINE_URL"),
        ({"FABSTIR_ENGINE_URL": "http://gpu.example"}, "FABSTIR_ENGINE_KIND"),
        ({**ELSEWHERE, "FABSTIR_ENGINE_URL": "ftp://gpu.example"}, "FABSTIR_ENGINE_URL"),
        ({**ELSEWHERE, "FABSTIR_ENGINE_URL": "http://"}, "FABSTIR_ENGINE_URL"),
        ({**ELSEWHERE, "FABSTIR_ENGINE_MODELS": "small"}, "FABSTIR_ENGINE_MODELS"),
        ({**ELSEWHERE, "FABSTIR_ENGINE_MODELS": "a=x,a=y"}, "FABSTIR_ENGINE_MODELS"),
        ({"FABSTIR_ENGINE_KIND": "vllm"}, "FABSTIR_ENGINE_KIND"),
        (
            {
                **ELSEWHERE,
                "FABSTIR_ENGINE_URL": "http://me:secretpw@gpu.example",
                "FABSTIR_ENGINE_API_KEY": "secretkey",
            },
            "FABSTIR_ENGINE_API_KEY",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refusal:
        loaded(tmp_path, **variables)
    assert "secret" not in str(refusal.value)


def test_the_engine_is_that_of_the_environment(tmp_path: Path, settings: LazySettings) -> None:
    settings.ENVIRONMENT = loaded(tmp_path)
    assert isinstance(make_engine(), EngineClient)
    settings.ENVIRONMENT = loaded(tmp_path, **ELSEWHERE)
    assert isinstance(make_engine(), OpenAIHttpEngine)


def test_the_process_tree_has_an_engine_only_where_it_is_used(tmp_path: Path) -> None:
    rpc = {"RPC_URL": "http://127.0.0.1:1", "REDIS_URL": "redis://127.0.0.1:1/0"}
    names = [
        {program.name for program in embedded._programs(loaded(tmp_path, **rpc, **more), Addresses())}
        for more in ({}, ELSEWHERE)
    ]
    assert names[0] - names[1] == {"engine"}


@pytest.fixture
def server() -> Iterator[tuple[FakeServer, str]]:
    """A server in a thread of its own, for code that brings its own event loop."""
    fake, ready, url = FakeServer(), threading.Event(), list[str]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(fake) as address:
            url.append(address)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield fake, url[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.mark.django_db
def test_preparing_the_node_serves_the_servers_models_and_sets_local_ones_aside(
    tmp_path: Path, settings: LazySettings, server: tuple[FakeServer, str]
) -> None:
    ServedModel.objects.create(
        id="local",
        path="/nowhere",
        source="test",
        architecture="llama",
        quantization="none",
        context_length=8,
        vocabulary_size=8,
        manifest_sha256="0" * 64,
        is_default=True,
    )
    settings.ENVIRONMENT = loaded(tmp_path, FABSTIR_ENGINE_KIND="openai_http", FABSTIR_ENGINE_URL=server[1])
    said: list[str] = []
    for _ in range(2):
        provisioning.ensure_model(said.append)
    (model,) = catalog.served_models()
    assert (model.id, model.is_default, model.context_length) == ("org-model-1b", True, 64)
    assert catalog.resolve("default") == model
    assert said[0] == "serving org-model-1b by the inference server"
    assert remote_models.retire_remote_models() == 1
    assert catalog.served_models() == []
    assert [row.id for row in catalog.listed_models()] == ["local"]


@pytest.mark.django_db
def test_a_model_that_the_server_no_longer_has_is_forgotten() -> None:
    first = remote_models.RemoteModel(id="a", context_length=8, vocabulary_size=0, description="vllm")
    second = replace(first, id="b")
    remote_models.serve_remote_models([first, second], aliases=("default", "b"))
    remote_models.serve_remote_models([second], aliases=("default", "b"))
    (model,) = catalog.listed_models()
    assert (model.id, model.aliases, model.is_default) == ("b", ["default"], True)
