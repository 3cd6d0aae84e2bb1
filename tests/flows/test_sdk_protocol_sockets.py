"""What the network's client does with its sockets and keys: where it connects, how long it waits, what it repeats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
from websockets.sync.client import connect

from fabstir_site.serving import SOCKETS
from jobs.socket_limits import SocketLimits
from nodes.models import ServedModel
from settlement.host_key import HOST_KEY
from tests.flows.clients import Socket, text_of
from tests.flows.flow import Flow, held_after, prompt_body
from tests.flows.node import Node, drop_node, frames_until, make_node
from tests.flows.sdk_crypto import SdkClient

GIVES_UP_AFTER = 30
WAITS_FOR_THE_END = 3


@pytest.fixture
def client(flow: Flow) -> SdkClient:
    return SdkClient(HOST_KEY.public_key())


def plain_init(job: int) -> dict[str, Any]:
    return {"type": "session_init", "id": "i", "session_id": str(job), "jobId": str(job)}


def plain_prompt(tokens: int = 5, *, id: str = "p", **fields: Any) -> dict[str, Any]:
    return {"type": "prompt", "id": id, "request": prompt_body(tokens, stream=True, **fields)}


async def asked(socket: Socket, client: SdkClient, job: int, *, encrypted: bool) -> list[dict]:
    """An init and a prompt; the frames of the answer alone."""
    [ack] = await socket.ask(client.init(job) if encrypted else plain_init(job))
    assert ack["type"] == "session_init_ack"
    return await socket.ask(client.prompt("Hi.", session=job, tokens=5) if encrypted else plain_prompt())


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_init_is_acknowledged_while_the_engine_answers_others(flow: Flow, client: SdkClient, encrypted: bool):
    job = flow.world.open_usdc()
    flow.use(held_after(0))

    async def play() -> str:
        async with flow.socket() as busy, flow.socket() as socket:
            await busy.send({"type": "inference", "id": "m", "request": prompt_body(50)})
            [ack] = await socket.ask(client.init(job) if encrypted else plain_init(job))
            flow.engine.resumed.set()
            await busy.until("stream_end")
            return ack["type"]

    assert flow.run(play()) == "session_init_ack"


@pytest.mark.parametrize("encrypted", [False, True])
def test_nothing_comes_that_was_not_asked_for(flow: Flow, client: SdkClient, encrypted: bool):
    """A second acknowledgement, or an error, would be taken for the answer to whatever is asked next."""
    job = flow.world.open_usdc()

    async def play() -> int:
        async with flow.socket() as socket:
            assert socket.waiting() == 0
            await asked(socket, client, job, encrypted=encrypted)
            await flow.settled()
            return socket.waiting()

    assert flow.run(play()) == 0


def test_an_unknown_message_is_refused_after_the_running_answer_and_not_in_its_midst(flow: Flow):
    """A client takes any error for the end of the answer it waits for."""
    flow.use(held_after(2))

    async def play() -> list[tuple[str, Any]]:
        async with flow.socket() as socket:
            await socket.send({"type": "inference", "id": "m", "request": prompt_body(20)})
            seen = await socket.until("stream_chunk")
            await socket.send({"type": "uploadVectors", "id": "u", "requestId": "r"})
            flow.engine.resumed.set()
            seen += await socket.until("stream_end")
            seen += await socket.until("stream_end")
            return [(frame["type"], frame["id"]) for frame in seen if frame["type"] != "stream_chunk"]

    assert flow.run(play()) == [("stream_end", "m"), ("error", "u"), ("stream_end", "u")]


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_end_has_the_usage_and_comes_while_the_client_waits_for_it(flow: Flow, client: SdkClient, encrypted: bool):
    job = flow.world.open_usdc()

    async def play() -> dict:
        async with flow.socket() as socket:
            await socket.ask(client.init(job) if encrypted else plain_init(job))
            await socket.send(client.prompt("Hi.", session=job, tokens=5) if encrypted else plain_prompt())
            await socket.chunks(5)
            async with asyncio.timeout(WAITS_FOR_THE_END):
                return (await socket.until("stream_end"))[-1]

    end = flow.run(play())
    assert end["tokens_used"] == end["usage"]["completion_tokens"] == 5
    assert end["usage"]["total_tokens"] == end["usage"]["prompt_tokens"] + 5
    assert end["usage"]["context_window_size"] == 2048


def test_the_usual_limit_of_a_plain_answer_is_less_than_its_client_waits() -> None:
    assert 0 < SocketLimits().plaintext_seconds < GIVES_UP_AFTER
    assert 0 < SOCKETS.limits.plaintext_seconds < GIVES_UP_AFTER


def test_prompts_that_wait_behind_a_slow_answer_end_in_time_as_well(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    """In both plain dialects; the time of a prompt runs from its arrival."""
    monkeypatch.setattr(SOCKETS, "limits", replace(SOCKETS.limits, plaintext_seconds=1))
    flow.use(held_after(0))
    later = [f"later {number}" for number in range(10)]

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.send({"type": "inference", "id": "one", "request": prompt_body(50)})
            for id in later:
                await socket.send(plain_prompt(id=id))
            async with asyncio.timeout(6):
                return [frame for _ in ("one", *later) for frame in await socket.until("stream_end")]

    errors = [(frame["id"], frame["code"]) for frame in flow.run(play()) if frame["type"] == "error"]
    assert errors == [(id, "timeout") for id in ("one", *later)]


def test_messages_under_one_key_need_not_count_up(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> list[str]:
        async with flow.socket() as socket:
            await socket.ask(client.init(job))
            texts = []
            for _ in range(2):
                client.messages = 0
                texts.append(client.read(await socket.ask(client.prompt("Hi.", session=job, tokens=5))))
            return texts

    assert flow.run(play()) == ["abcde", "abcde"]
    assert flow.tracked(job) == 10


SPELLINGS = ["tiny", "organisation/model-GGUF:model.q8_0.gguf", "0x" + "ab" * 32]


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_model_answers_to_each_spelling_that_its_operator_gave_it(
    flow: Flow, client: SdkClient, encrypted: bool, name: str
):
    ServedModel.objects.update(aliases=SPELLINGS)
    job = flow.world.open_usdc()
    inner = {"prompt": "Hi.", "model": name, "max_tokens": 5, "temperature": 0.7, "stream": True}

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.ask(client.init(job) if encrypted else plain_init(job))
            return await socket.ask(client.message(inner, session=job) if encrypted else plain_prompt(model=name))

    frames = flow.run(play())
    assert (client.read(frames) if encrypted else text_of(frames)) == "abcde"


@pytest.fixture(scope="module")
def node(anvil_of_module: str) -> Iterator[Node]:
    node = make_node(anvil_of_module, text="abcdefghij")
    node.start("web")
    yield node
    drop_node(node)


@pytest.mark.parametrize("path", ["/v1/ws", "//v1/ws"])
def test_a_browser_of_any_origin_connects_at_every_address_that_clients_make(node: Node, path: str):
    address = node.address(path).replace("http", "ws", 1)
    with connect(address, origin="https://app.example") as socket:  # type: ignore[arg-type]
        assert frames_until(socket, "connected")
        socket.send(json.dumps({"type": "inference", "id": "m", "request": prompt_body(5)}))
        assert text_of(frames_until(socket, "stream_end")) == "abcde"


@pytest.mark.parametrize("path", ["/v1/v1/inference", "//v1/inference"])
def test_the_web_server_passes_on_every_address_that_clients_make(node: Node, path: str):
    assert requests.post(node.address(path), json=prompt_body(5), timeout=60).json()["text"] == "abcde"
