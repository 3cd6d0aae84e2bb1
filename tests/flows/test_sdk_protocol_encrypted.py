"""The network's client in an encrypted session, frame by frame, and each rule that it needs a host to keep."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fabstir_site.serving import SOCKETS
from jobs.inference.scripted import reply_of
from jobs.models import InferenceRequest
from settlement.host_key import HOST_KEY
from tests.flows.clients import Socket
from tests.flows.flow import Flow, held_after
from tests.flows.sdk_crypto import SdkClient, decrypt

TEXT = "Zürich → 東京 👩‍👩‍👧 𝄞 "


@pytest.fixture
def client(flow: Flow) -> SdkClient:
    return SdkClient(HOST_KEY.public_key())


async def started(socket: Socket, client: SdkClient, job: int | str, **fields: Any) -> dict[str, Any]:
    return (await socket.ask(client.init(job, **fields)))[-1]


async def answered(socket: Socket, client: SdkClient, job: int, text: str = "Hi.", **fields: Any) -> list[dict]:
    assert (await started(socket, client, job))["type"] == "session_init_ack"
    return await socket.ask(client.prompt(text, session=job, **fields))


def test_an_encrypted_answer_arrives_in_the_order_that_the_client_reads(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()
    flow.use(reply_of(TEXT, tokens=len(TEXT.encode())))

    async def play() -> tuple[dict, list[dict]]:
        async with flow.socket() as socket:
            ack = await started(socket, client, job)
            return ack, await socket.ask(client.prompt("Count.", session=job, tokens=500, id="p1"))

    ack, frames = flow.run(play())
    assert (ack["status"], ack["session_id"], ack["job_id"], ack["chain_id"]) == ("success", str(job), job, 31337)
    assert ack["client_address"] == client.address
    assert "id" not in ack
    kinds = [frame["type"] for frame in frames]
    assert set(kinds[:-2]) == {"encrypted_chunk"}
    assert kinds[-2:] == ["encrypted_response", "stream_end"]
    assert [frame.get("final") for frame in frames if frame["type"] == "encrypted_chunk"][-2:] == [None, True]
    assert {(frame["id"], frame["session_id"]) for frame in frames} == {("p1", str(job))}
    assert client.read(frames) == TEXT
    assert client.finish_reason(frames) == frames[-1]["finish_reason"] == "stop"
    assert sum(frame.get("tokens", 0) for frame in frames) == frames[-1]["tokens_used"] == len(TEXT.encode())
    assert flow.tracked(job) == len(TEXT.encode())
    assert InferenceRequest.objects.get().path == "ws_encrypted"


def test_every_chunk_has_its_three_hex_fields_and_decodes_alone(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()
    flow.use(reply_of(TEXT, tokens=200))

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await answered(socket, client, job, tokens=200)

    chunks = [frame for frame in flow.run(play()) if frame["type"] == "encrypted_chunk"]
    for chunk in chunks:
        assert all(isinstance(chunk["payload"][name], str) for name in ("ciphertextHex", "nonceHex", "aadHex"))
        decrypt(client.key, chunk["payload"]).decode()
    assert len({chunk["payload"]["nonceHex"] for chunk in chunks}) == len(chunks)


def test_nothing_of_the_end_is_sent_in_the_same_turn_as_the_last_text(flow: Flow, client: SdkClient):
    """Some clients lose what arrives together with the end of the stream."""
    job = flow.world.open_usdc()

    async def play() -> tuple[int, list[dict]]:
        async with flow.socket() as socket:
            await started(socket, client, job)
            await socket.send(client.prompt("Hi.", session=job, tokens=5))
            frames = await socket.chunks(5)
            for _ in range(20):
                await asyncio.sleep(0)
            return socket.waiting(), frames + await socket.until("stream_end")

    waiting, frames = flow.run(play())
    assert waiting == 0
    assert client.read(frames) == "abcde"


@pytest.mark.parametrize("prefix", ["", "0x"])
@pytest.mark.parametrize("suffix", ["", "n"])
def test_ids_and_hex_in_every_spelling_name_the_same_job(flow: Flow, client: SdkClient, prefix: str, suffix: str):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            ack = await started(socket, client, f"{job}{suffix}", prefix=prefix)
            assert (ack["type"], ack["job_id"]) == ("session_init_ack", job)
            return await socket.ask(client.prompt("Hi.", session=job, tokens=7))

    assert client.read(flow.run(play())) == "abcdefg"
    assert flow.tracked(job) == 7


def test_a_new_key_at_every_init_starts_its_messages_and_chunks_at_zero(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> list[str]:
        async with flow.socket() as socket:
            return [client.read(await answered(socket, client, job, text, tokens=5)) for text in ("One.", "Two.")]

    assert flow.run(play()) == ["abcde", "abcde"]
    assert flow.tracked(job) == 10
    said = [[turn.content for turn in request.messages] for request in flow.engine.requests]
    assert said == [["One."], ["One.", "abcde", "Two."]]


def test_the_key_is_that_of_the_connection_whatever_session_a_message_names(flow: Flow, client: SdkClient):
    first, second = flow.world.open_usdc(), flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as one, flow.socket() as two:
            await started(one, client, first)
            await started(two, client, second)
            return await two.ask(client.prompt("Hi.", session=first, tokens=5))

    assert client.read(flow.run(play())) == "abcde"
    assert flow.tracked(second) == 5
    assert flow.session(first).tokens_tracked == 0


def test_a_request_for_an_image_is_an_error_at_once_and_costs_nothing(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()
    wanted = {"action": "image_generation", "prompt": "a cat", "size": "256x256", "steps": 4}

    async def play() -> tuple[list[dict], list[dict]]:
        async with flow.socket() as socket:
            await started(socket, client, job)
            refused = await socket.ask(client.message(wanted, session=job, id="img-1"))
            return refused, await answered(socket, client, job, "draw a cat", tokens=5)

    refused, answer = flow.run(play())
    assert [frame["type"] for frame in refused] == ["error", "stream_end"]
    assert (refused[0]["id"], refused[0]["code"]) == ("img-1", "IMAGE_GENERATION_NOT_SUPPORTED")
    assert client.read(answer) == "abcde"
    assert [request.messages[-1].content for request in flow.engine.requests] == ["draw a cat"]
    assert flow.tracked(job) == 5


def test_a_search_that_the_client_asks_for_by_itself_is_never_a_reason_to_refuse(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()
    asked = ({"web_search": True, "max_searches": 5, "search_queries": ["news"]}, {"search_queries": None})

    async def play() -> list[str]:
        async with flow.socket() as socket:
            return [client.read(await answered(socket, client, job, tokens=5, **fields)) for fields in asked]

    assert flow.run(play()) == ["abcde", "abcde"]


def test_a_message_sent_twice_is_generated_once_and_both_copies_are_answered(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> tuple[list[dict], list[dict]]:
        async with flow.socket() as socket:
            await started(socket, client, job)
            message = client.prompt("Hi.", session=job, tokens=5, id="first")
            await socket.send(message)
            await socket.send({**message, "id": "again"})
            return await socket.until("stream_end"), await socket.until("stream_end")

    first, again = flow.run(play())
    assert (client.read(first), client.read(again)) == ("abcde", "abcde")
    assert ({frame["id"] for frame in again}, again[-1]["tokens_used"]) == ({"again"}, 5)
    assert len(flow.engine.requests) == 1
    assert flow.tracked(job) == 5


def test_a_copied_message_on_a_strangers_socket_spends_nothing(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await started(socket, client, job)
            old = client.prompt("One.", session=job, tokens=5)
            await socket.ask(old)
            await socket.ask(client.prompt("Two.", session=job, tokens=5))
        async with flow.socket() as stranger:
            return await stranger.ask(old)

    refused = flow.run(play())
    assert refused[0]["code"] == "MESSAGE_REPEATED"
    assert flow.tracked(job) == 10


def test_a_client_that_reconnects_and_sends_its_message_again_needs_no_new_init(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await started(socket, client, job)
        async with flow.socket() as socket:
            return await socket.ask(client.prompt("Hi.", session=job, tokens=5))

    assert client.read(flow.run(play())) == "abcde"
    assert flow.tracked(job) == 5


def test_two_prompts_in_flight_are_answered_one_after_the_other_each_with_its_own_key(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()
    other = SdkClient(client.host_public_key, account=client.account)

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            for sender, id in ((client, "one"), (other, "two")):
                await socket.send(sender.init(job))
                await socket.send(sender.prompt("Hi.", session=job, tokens=5, id=id))
            return await socket.until("stream_end") + await socket.until("stream_end")

    frames = flow.run(play())
    ids = [frame["id"] for frame in frames if "id" in frame]
    assert ids == sorted(ids, key=("one", "two").index)
    for sender, id in ((client, "one"), (other, "two")):
        assert sender.read([frame for frame in frames if frame.get("id") == id]) == "abcde"


@pytest.mark.parametrize("held", [1, 20])
def test_a_cancel_ends_the_stream_before_the_next_init_is_acknowledged(flow: Flow, client: SdkClient, held: int):
    job = flow.world.open_usdc()
    flow.use(held_after(held))

    async def play() -> tuple[list[dict], list[dict]]:
        async with flow.socket() as socket:
            await started(socket, client, job)
            await socket.send(client.prompt("Long.", session=job, tokens=500, id="long"))
            await socket.chunks(held)
            await socket.send({"type": "stream_cancel", "session_id": str(job), "reason": "user_cancelled"})
            flow.use(reply_of("fresh"))
            await socket.send(client.init(job))
            await socket.send(client.prompt("Next.", session=job, id="next"))
            return await socket.until("session_init_ack"), await socket.until("stream_end")

    cancelled, following = flow.run(play())
    assert [frame["type"] for frame in cancelled] == ["stream_end", "session_init_ack"]
    assert (cancelled[0]["reason"], cancelled[0]["tokens_used"], cancelled[0]["id"]) == ("cancelled", held, "long")
    assert client.read(following) == "fresh"
    assert flow.tracked(job) == held + 5


def test_an_idle_cancel_sends_no_error_that_would_reject_the_next_init(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            await socket.send({"type": "stream_cancel", "session_id": str(job), "reason": "user_cancelled"})
            await socket.send(client.init(job))
            return await socket.until("session_init_ack", "error")

    assert [frame["type"] for frame in flow.run(play())] == ["session_init_ack"]


def test_an_init_that_no_message_follows_leaves_the_socket_as_it_was(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> str:
        async with flow.socket() as socket:
            await started(socket, client, job)
            return client.read(await answered(socket, client, job, tokens=5))

    assert flow.run(play()) == "abcde"


def test_what_an_init_proves_does_not_count_for_messages_in_the_clear(flow: Flow, client: SdkClient):
    """An init can be recorded and sent again by anybody who saw it; its key cannot be used by them."""
    job = flow.world.open_usdc()
    seen: list[frozenset[str]] = []
    serving = SOCKETS.serving
    original = type(serving)._opening

    async def watched(self: Any, reference: Any, **named: Any) -> Any:
        seen.append(named["caller"].addresses)
        return await original(self, reference, **named)

    async def play() -> None:
        async with flow.socket() as socket:
            await answered(socket, client, job, tokens=5)
            await socket.ask({"type": "prompt", "id": "p", "jobId": str(job), "prompt": "Hi.", "max_tokens": 5})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(serving), "_opening", watched)
        flow.run(play())
    assert seen == [{client.address}, {client.address}, frozenset()]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "encrypted_session_init", "session_id": "1"}, "MISSING_PAYLOAD"),
        ({"type": "encrypted_session_init", "session_id": "1", "payload": {}}, "INVALID_PAYLOAD"),
        ({"type": "encrypted_message", "payload": {}}, "MISSING_SESSION_ID"),
        ({"type": "encrypted_message", "session_id": "none"}, "SESSION_KEY_NOT_FOUND"),
    ],
)
def test_a_faulty_encrypted_message_is_told_by_a_code_that_clients_know(flow: Flow, frame: dict, code: str):
    async def play() -> list[dict]:
        async with flow.socket() as socket:
            return await socket.ask({**frame, "id": "x"})

    error, end = flow.run(play())
    assert (error["code"], error["error_code"], error["id"], end["reason"]) == (code, code, "x", "error")
    assert error["message"] == error["error"] != ""


def test_an_init_that_cannot_be_decrypted_is_refused_and_a_good_one_follows(flow: Flow, client: SdkClient):
    job = flow.world.open_usdc()

    async def play() -> tuple[dict, str]:
        async with flow.socket() as socket:
            broken = client.init(job)
            broken["payload"]["ciphertextHex"] = "00" * 50
            refused = (await socket.ask(broken))[0]
            return refused, client.read(await answered(socket, client, job, tokens=5))

    refused, text = flow.run(play())
    assert refused["code"] == "DECRYPTION_FAILED"
    assert text == "abcde"


def test_neither_keys_nor_prompts_reach_the_log(flow: Flow, client: SdkClient, caplog: pytest.LogCaptureFixture):
    job = flow.world.open_usdc()
    caplog.set_level("DEBUG")

    async def play() -> None:
        async with flow.socket() as socket:
            await answered(socket, client, job, "a secret question", tokens=5)
            await socket.ask(client.message(b"{not json: a secret question", session=job))

    flow.run(play())
    assert client.key.hex() not in caplog.text
    assert "a secret question" not in caplog.text
    assert json.dumps(client.address) not in caplog.text
