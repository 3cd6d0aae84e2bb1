"""What outlives a socket: the conversation of its session, for a while, and for nobody else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fabstir_site.asgi import application
from fabstir_site.serving import SOCKETS
from jobs import api_keys
from jobs.api_keys import Limits, Scope
from jobs.conversations import Conversations
from settlement.host_key import HOST_KEY
from tests.flows.clients import Socket, text_of
from tests.flows.flow import Flow, held_after
from tests.flows.sdk_crypto import SdkClient


def said(flow: Flow) -> list[list[str]]:
    return [[turn.content for turn in request.messages] for request in flow.engine.requests]


def new_key() -> str:
    return api_keys.create(name="Ada", scopes=(Scope.INFERENCE,), lifetime=timedelta(days=1), limits=Limits()).secret


async def asked(flow: Flow, session: int | str, *texts: str, key: str = "") -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    async with Socket(application, headers=headers) as socket:
        await socket.ask({"type": "session_init", "id": "i", "session_id": str(session)})
        for text in texts:
            await socket.ask({"type": "prompt", "id": "p", "prompt": text, "max_tokens": 5})


@pytest.mark.parametrize("named", ["a job", "a session without one"])
def test_a_conversation_survives_its_socket(flow: Flow, named: str):
    session, key = (flow.world.open_usdc(), "") if named == "a job" else ("kitchen talk", new_key())

    async def play() -> None:
        for text in ("One.", "Two."):
            await asked(flow, session, text, key=key)

    flow.run(play())
    assert said(flow) == [["One."], ["One.", "abcde", "Two."]]


@pytest.mark.parametrize("session", ["kitchen talk", "a number of no job"])
@pytest.mark.parametrize("proven", [True, False])
def test_strangers_at_one_address_who_name_their_sessions_alike_share_nothing(flow: Flow, proven: bool, session: str):
    keys = [new_key(), new_key()] if proven else ["", ""]
    named = "987654321" if session == "a number of no job" else session

    async def play() -> None:
        await asked(flow, named, "Mine.", "And more.", key=keys[0])
        await asked(flow, named, "Another's.", key=keys[1])

    flow.run(play())
    assert said(flow) == [["Mine."], ["Mine.", "abcde", "And more."], ["Another's."]]


@pytest.mark.parametrize("exists", [True, False])
def test_a_prompt_without_an_init_finds_the_history_of_a_job_alone(flow: Flow, exists: bool):
    job = flow.world.open_usdc() if exists else 987654321

    async def play() -> None:
        for text in ("One.", "Two."):
            async with flow.socket() as socket:
                message = {"type": "prompt", "id": "p", "session_id": str(job), "prompt": text, "max_tokens": 5}
                assert (await socket.ask(message))[-1]["reason"] == "complete"

    flow.run(play())
    assert said(flow) == [["One."], ["One.", "abcde", "Two."] if exists else ["Two."]]


def test_a_conversation_is_forgotten_after_the_grace_period(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    job = flow.world.open_usdc()
    monkeypatch.setattr(SOCKETS, "conversations", Conversations(kept_seconds=0))

    async def play() -> None:
        for text in ("One.", "Two."):
            await asked(flow, job, text)

    flow.run(play())
    assert said(flow) == [["One."], ["Two."]]


def test_a_conversation_is_not_told_to_another_wallet_on_the_same_job(flow: Flow):
    job = flow.world.open_usdc()
    key = HOST_KEY.public_key()

    async def play() -> None:
        await asked(flow, job, "In the clear.")
        for client in (SdkClient(key), SdkClient(key)):
            async with flow.socket() as socket:
                await socket.ask(client.init(job))
                await socket.ask(client.prompt("Mine.", session=job, tokens=5))

    flow.run(play())
    assert said(flow) == [["In the clear."], ["Mine."], ["Mine."]]


def test_an_encrypted_conversation_goes_on_after_a_reconnect_with_a_new_key(flow: Flow):
    job = flow.world.open_usdc()
    client = SdkClient(HOST_KEY.public_key())

    async def play() -> list[str]:
        texts = []
        for text in ("One.", "Two."):
            async with flow.socket() as socket:
                await socket.ask(client.init(job))
                texts.append(client.read(await socket.ask(client.prompt(text, session=job, tokens=5))))
        return texts

    assert flow.run(play()) == ["abcde", "abcde"]
    assert said(flow) == [["One."], ["One.", "abcde", "Two."]]


def test_a_prompt_whose_socket_was_lost_is_answered_when_it_is_sent_again(flow: Flow):
    """What had been generated is billed; the lost answer is not part of the conversation."""
    job = flow.world.open_usdc()
    flow.use(held_after(3))

    async def play() -> list[dict]:
        message = {"type": "prompt", "id": "same", "prompt": "One.", "max_tokens": 8}
        async with flow.socket() as socket:
            await socket.ask({"type": "session_init", "id": "i", "session_id": str(job)})
            await socket.send(message)
            await socket.chunks(3)
        await flow.settled()
        flow.engine.resumed.set()
        async with flow.socket() as socket:
            await socket.ask({"type": "session_init", "id": "i", "session_id": str(job)})
            return await socket.ask(message)

    frames = flow.run(play())
    assert (text_of(frames), frames[-1]["id"]) == ("abcdefgh", "same")
    assert said(flow) == [["One."], ["One."]]
    assert flow.tracked(job) == 3 + 8


def test_conversations_are_bounded_in_turns_bytes_and_age() -> None:
    now = [0.0]
    conversations = Conversations(kept_seconds=60, clock=lambda: now[0])
    talk = conversations.of(("job 1", "a"))
    for number in range(40):
        talk.add(prompt=f"{number}?", answer="yes")
    assert len(talk.turns) == 32
    assert talk.turns[0].content == "24?"
    talk.add(prompt="x" * 300_000, answer="no")
    assert (talk.size <= 256 * 1024, len(talk.turns) <= 1) == (True, True)
    assert conversations.of(("job 1", "b")).turns == []
    now[0] = 50
    conversations.touch(("job 1", "a"))
    now[0] = 100
    assert conversations.of(("job 1", "a")) is talk
    now[0] = 161
    assert conversations.of(("job 1", "a")) is not talk
    assert len(conversations) == 1


def test_all_conversations_together_are_bounded() -> None:
    conversations = Conversations(kept_seconds=60, clock=lambda: 0.0)
    for number in range(400):
        conversations.of((f"job {number}", "a")).add(prompt="x" * 250_000, answer="")
    conversations.of(("job 400", "a"))
    assert len(conversations) * 250_000 < 65 * 1024 * 1024
    assert conversations.of(("job 399", "a")).turns
