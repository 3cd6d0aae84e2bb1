"""The real engine process, its socket and its client, with scripted models."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from jobs.inference import frames
from jobs.inference.client import EngineClient
from jobs.inference.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    ModelNotLoaded,
    RequestRefused,
    TokenChunk,
)
from jobs.inference.placement import choose_placement
from tests.plugins.model import EngineProcess, ids_of, request, text_of

SCRIPTED = {"id": "scripted", "scripted": {"text": "日本 🎉 ", "tokens": 24}}
HELD = {"id": "held", "scripted": {"text": "0123456789", "hold_after": 5}}
FAILING = {"id": "failing", "scripted": {"text": "0123456789", "fail_after": 4}}
SMALL = {"id": "small", "scripted": {"context_length": 10}}
PACED = {"id": "paced", "scripted": {"seconds_per_token": 0.001, "context_length": 100_000, "replicas": 4}}


async def collect(client: EngineClient, wanted: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in client.generate(wanted)]


async def test_a_reply_travels_whole(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED)
    chunks = await collect(client, request("añb", max_tokens=100))
    expected = ("日本 🎉 ".encode() * 3)[:24]
    assert bytes(ids_of(chunks)) == expected
    assert text_of(chunks) == expected.decode()
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert {chunk.prompt_tokens for chunk in chunks} == {4}
    assert chunks[-1].finish_reason == "stop"
    await client.close()


async def test_the_models_are_listed_with_the_default_first(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED, SMALL | {"default": True})
    models = await client.models()
    assert [(model.model, model.context_length) for model in models] == [("small", 10), ("scripted", 2048)]
    await client.close()


async def test_many_requests_share_one_connection(engine_process: EngineProcess) -> None:
    client = engine_process.start(PACED)
    wanted = [request(request_id=str(n), model="paced", max_tokens=10 + n) for n in range(40)]
    replies = await asyncio.gather(*(collect(client, one) for one in wanted))
    assert [len(ids_of(chunks)) for chunks in replies] == [10 + n for n in range(40)]
    await client.close()


async def test_errors_keep_their_types(engine_process: EngineProcess) -> None:
    client = engine_process.start(
        SMALL, HELD | {"scripted": {"hold_after": 1, "replicas": 1, "batch_rows": 1}}, queue_size=0
    )
    with pytest.raises(ModelNotLoaded, match="other"):
        await collect(client, request(model="other"))
    with pytest.raises(RequestRefused, match="out of range"):
        await collect(client, request(model="small", max_tokens=0))
    with pytest.raises(ContextLengthExceeded) as exceeded:
        await collect(client, request("x" * 12, model="small"))
    assert (exceeded.value.prompt_tokens, exceeded.value.context_length) == (12, 10)
    held = client.generate(request(model="held"))
    await anext(held)
    with pytest.raises(EngineBusy) as busy:
        await collect(client, request(model="held", request_id="other"))
    assert busy.value.retry_after >= 1
    await held.aclose()
    await client.close()


async def test_a_failure_half_way_follows_what_was_produced(engine_process: EngineProcess) -> None:
    client = engine_process.start(FAILING)
    chunks: list[TokenChunk] = []
    with pytest.raises(GenerationFailed, match="after 4"):
        async for chunk in client.generate(request(model="failing")):
            chunks.append(chunk)
    assert bytes(ids_of(chunks)) == b"0123"
    await client.close()


async def test_cancel_ends_the_stream_with_exact_ids(engine_process: EngineProcess) -> None:
    client = engine_process.start(HELD)
    other = EngineClient(engine_process.socket)
    chunks: list[TokenChunk] = []
    async for chunk in client.generate(request(model="held", max_tokens=500)):
        chunks.append(chunk)
        if len(ids_of(chunks)) == 5:
            await other.cancel("request-1")
    assert bytes(ids_of(chunks)) == b"01234"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["cancelled"]
    await other.cancel("unknown")
    await other.close()
    await client.close()


async def test_an_abandoned_stream_frees_its_replica(engine_process: EngineProcess) -> None:
    client = engine_process.start(HELD | {"scripted": {"hold_after": 2, "replicas": 1, "batch_rows": 1}}, queue_size=1)
    for number in range(5):
        stream = client.generate(request(model="held", request_id=str(number), max_tokens=500))
        # The one replica answers each: the stream abandoned before does not hold it any more.
        assert len((await anext(stream)).token_ids) > 0
        await stream.aclose()
    await client.close()


async def test_clients_know_that_the_queue_is_full_without_asking(engine_process: EngineProcess) -> None:
    client = engine_process.start(HELD | {"scripted": {"hold_after": 2, "replicas": 1, "batch_rows": 1}}, queue_size=1)
    assert client.busy() is None
    running = client.generate(request(model="held", request_id="running"))
    await anext(running)
    waiting = asyncio.ensure_future(anext(client.generate(request(model="held", request_id="waiting"))))
    late = EngineClient(engine_process.socket)
    await late.models()
    async with asyncio.timeout(10):
        while client.busy() is None or late.busy() is None:
            await asyncio.sleep(0.001)
    await client.cancel("waiting")
    assert (await waiting).finish_reason == "cancelled"
    async with asyncio.timeout(10):
        while client.busy() is not None or late.busy() is not None:
            await asyncio.sleep(0.001)
    await running.aclose()
    await late.close()
    await client.close()


async def test_a_connection_that_dies_cancels_its_requests(engine_process: EngineProcess) -> None:
    client = engine_process.start(HELD | {"scripted": {"hold_after": 2, "replicas": 1, "batch_rows": 1}}, queue_size=1)
    dying = EngineClient(engine_process.socket)
    stream = dying.generate(request(model="held", request_id="dying"))
    await anext(stream)
    await dying.close()
    with pytest.raises(EngineUnavailable):
        [chunk async for chunk in stream]
    # The only replica is free again: this request is not merely queued.
    following = client.generate(request(model="held", request_id="following"))
    assert (await anext(following)).token_ids
    await following.aclose()
    await client.close()


async def test_kill_mid_stream_is_a_typed_error_and_the_client_reconnects(
    engine_process: EngineProcess,
) -> None:
    client = engine_process.start(HELD, SCRIPTED)
    chunks: list[TokenChunk] = []
    with pytest.raises(EngineUnavailable):
        async for chunk in client.generate(request(model="held")):
            chunks.append(chunk)
            if len(ids_of(chunks)) == 5:
                engine_process.kill()
    assert bytes(ids_of(chunks)) == b"01234"
    with pytest.raises(EngineUnavailable, match="may be starting"):
        await client.models()
    await client.cancel("request-1")
    engine_process.start(SCRIPTED)  # over the stale socket file that the kill left
    assert len(ids_of(await collect(client, request(max_tokens=24)))) == 24
    await client.close()


async def test_what_arrived_before_a_kill_is_delivered_to_a_slow_reader(
    engine_process: EngineProcess,
) -> None:
    client = engine_process.start(HELD, SCRIPTED)
    stream = client.generate(request(model="held"))
    chunks = [await anext(stream)]
    await asyncio.gather(*(collect(client, request(request_id=f"r{n}")) for n in range(20)))
    engine_process.kill()
    with pytest.raises(EngineUnavailable):
        async for chunk in stream:
            chunks.append(chunk)
    assert bytes(ids_of(chunks)) == b"01234"
    await client.close()


async def test_a_reader_that_pauses_delays_no_other_request(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED | {"scripted": {"context_length": 10**6}})
    paused = client.generate(request(request_id="paused", max_tokens=50_000))
    chunks = [await anext(paused)]
    assert len(ids_of(await collect(client, request(max_tokens=30)))) == 30
    chunks += [chunk async for chunk in paused]
    assert len(ids_of(chunks)) == 50_000
    await client.close()


async def test_a_client_that_does_not_read_delays_no_other_client(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED | {"scripted": {"context_length": 10**6, "replicas": 2}})
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(engine_process.socket))
    deaf.sendall(frames.pack_request(1, request(request_id="deaf", max_tokens=900_000)))
    assert len(ids_of(await collect(client, request(max_tokens=3000)))) == 3000
    deaf.close()
    await client.close()


def test_a_client_serves_several_event_loops_and_threads(engine_process: EngineProcess) -> None:
    client = engine_process.start(PACED)
    counts: list[int] = []

    async def one(number: int) -> None:
        chunks = await collect(client, request(request_id=str(number), model="paced", max_tokens=20))
        counts.append(len(ids_of(chunks)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(one(n))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(one(7))
    assert counts == [20] * 7


@pytest.mark.parametrize("repetition", range(5))
async def test_sigterm_while_streaming_exits_cleanly(engine_process: EngineProcess, repetition: int) -> None:
    client = engine_process.start(PACED, HELD)
    streams = [
        client.generate(request(request_id=str(n), model=model, max_tokens=50_000))
        for n, model in enumerate(["paced", "paced", "held", "held", "held"])
    ]
    for stream in streams[:4]:
        await anext(stream)
    engine_process.send_signal(signal.SIGTERM)
    endings = [[chunk async for chunk in stream][-1].finish_reason for stream in streams[:4]]
    assert endings == ["cancelled"] * 4
    assert await asyncio.to_thread(engine_process.wait) == 0, engine_process.output
    assert not engine_process.socket.exists()
    with pytest.raises(EngineError):
        await collect(client, request())
    await client.close()


async def test_sigterm_with_a_deaf_client_exits_cleanly(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED | {"scripted": {"context_length": 10**6}})
    await client.models()
    await client.close()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(engine_process.socket))
        deaf.sendall(frames.pack({"op": "models", "id": 1}))
        engine_process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(engine_process.wait) == 0, engine_process.output


async def test_a_second_engine_on_a_live_socket_refuses(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED)
    second = EngineProcess(engine_process.directory)
    second.log = engine_process.directory / "second.log"
    second.spawn(SCRIPTED)
    assert second.wait() == 4
    assert "already" in second.output
    assert (await client.models())[0].model == "scripted"
    await client.close()


async def test_the_socket_is_private(engine_process: EngineProcess) -> None:
    engine_process.start(SCRIPTED)
    assert stat.S_IMODE(engine_process.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x81\xa1", b"\x00\x00\x00\x01\x01"],
    ids=["too long", "not msgpack", "truncated msgpack", "not a map"],
)
async def test_malformed_frames_close_only_their_connection(engine_process: EngineProcess, data: bytes) -> None:
    client = engine_process.start(SCRIPTED)
    reader, writer = await asyncio.open_unix_connection(str(engine_process.socket))
    writer.write(data)
    assert await reader.read() == b""
    writer.close()
    assert (await client.models())[0].model == "scripted"
    await client.close()


async def test_a_malformed_role_is_not_accepted(engine_process: EngineProcess) -> None:
    client = engine_process.start(SCRIPTED)
    odd = request(messages=(ChatMessage(role="tool", content="x"),))  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable):
        await collect(client, odd)
    await client.close()


def niceness_of_threads(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted(os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
async def test_computing_gives_way_to_the_rest_of_the_node(real_engine_process: EngineProcess) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found = niceness_of_threads(real_engine_process.pid)
    lowered = [niceness for niceness in found if niceness > own]
    assert len(lowered) == choose_placement(device="cpu").replicas
    assert set(found) == {own, *lowered}
