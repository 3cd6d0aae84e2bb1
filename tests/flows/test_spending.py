"""Who may spend a deposit: on every path, a job's number alone neither spends nor blocks it."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account import Account

from fabstir_site.asgi import application
from fabstir_site.serving import SERVING
from jobs.access_rules import SpendingPolicy
from jobs.inference.engine import ContextLengthExceeded, GenerationFailed
from jobs.inference.scripted import ScriptedReply
from jobs.models import InferenceRequest, Session, SessionAuthorization
from tests.flows.clients import Answer, Socket
from tests.flows.depositors import Depositor
from tests.flows.flow import PATHS, Flow, endless, prompt_body
from tests.flows.sdk_crypto import SdkClient

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 5}


@pytest.fixture
def depositor(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Depositor:
    monkeypatch.setattr(SERVING, "spending", SpendingPolicy.DEPOSITOR)
    return Depositor(flow)


def code_of(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return error["code"] if isinstance(error, dict) else answer["error_type"]


def assert_untouched(job_id: int) -> None:
    """Not a row, not a token, and nothing that would close or block the job."""
    assert not Session.objects.filter(job_id=job_id).exists()
    assert not InferenceRequest.objects.exists()


@pytest.mark.parametrize("path", PATHS)
def test_the_number_of_a_job_spends_nothing(flow: Flow, depositor: Depositor, path: str) -> None:
    job_id = depositor.open_job()
    assert code_of(flow.ask(path, tokens=5, job_id=job_id)) == "not_depositor"
    assert_untouched(job_id)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/v1/inference"])
def test_no_other_address_spends_it_either(flow: Flow, depositor: Depositor, path: str) -> None:
    job_id = depositor.open_job()
    body = {**(CHAT if "chat" in path else prompt_body(5)), "job_id": str(job_id)}
    assert flow.post(body, path=path).status == 403
    assert_untouched(job_id)


def test_ending_a_session_that_one_was_refused_ends_nothing(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()

    async def play() -> None:
        async with flow.socket() as socket:
            refused = await socket.ask({"type": "session_init", "job_id": str(job_id), "chain_id": 31337})
            assert refused[-2]["code"] == "not_depositor"
            ended = await socket.ask({"type": "session_end", "session_id": str(job_id)})
            assert ended[-1].get("sessions_closed", 0) == 0

    flow.run(play())
    assert_untouched(job_id)


def test_the_refusal_says_how_to_prove_it(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    refusal = flow.post(prompt_body(5, job_id=job_id))
    assert refusal.status == 403
    assert "/v1/session-auth" in refusal.json["message"]
    assert refusal.json["details"]["depositor"] == depositor.address


def test_a_token_of_the_depositor_spends_over_http(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    token = depositor.token(job_id)
    for header in ({"Authorization": f"Bearer {token}"}, {"X-Fabstir-Session-Token": token}):
        assert flow.post(prompt_body(5, job_id=job_id), headers=header).status == 200
    assert flow.tracked(job_id) == 10
    assert flow.session(job_id).bound_by == "authorization"
    assert token not in str(list(SessionAuthorization.objects.values()))


def test_a_token_opens_its_own_job_only(flow: Flow, depositor: Depositor) -> None:
    mine, other = depositor.open_job(), Depositor(flow).open_job()
    refusal = flow.post(prompt_body(5, job_id=other), headers={"Authorization": f"Bearer {depositor.token(mine)}"})
    assert (refusal.status, refusal.json["error_type"]) == (403, "not_depositor")


def test_a_token_spends_over_a_socket(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    token = depositor.token(job_id)
    init = {"type": "session_init", "job_id": str(job_id), "chain_id": 31337}

    async def play() -> None:
        async with flow.socket() as socket:
            assert (await socket.ask({**init, "session_token": token}))[-1]["type"] == "session_init_ack"
            assert (await socket.ask({"type": "prompt", **prompt_body(5)}))[-1]["reason"] == "complete"
        async with Socket(application, path=f"/v1/ws?session_token={token}") as socket:
            assert (await socket.ask(init))[-1]["type"] == "session_init_ack"

    flow.run(play())
    assert flow.tracked(job_id) == 5


def test_an_invalid_token_is_refused_before_the_job_is_looked_at(flow: Flow, depositor: Depositor) -> None:
    refusal = flow.post(prompt_body(5), headers={"Authorization": "Bearer fst_guessed"})
    assert (refusal.status, refusal.json["error_type"]) == (401, "invalid_session_token")


def test_the_bearer_text_that_openai_clients_always_send_is_ignored(flow: Flow) -> None:
    assert flow.post(prompt_body(5), headers={"Authorization": "Bearer sk-not-needed"}).status == 200


def encrypted_init(flow: Flow, client: SdkClient, job_id: int) -> dict[str, Any]:
    async def play() -> dict[str, Any]:
        async with flow.socket() as socket:
            frames = await socket.ask(client.init(job_id))
            return frames[-2] if frames[-1]["type"] == "stream_end" else frames[-1]

    return flow.run(play())


def sdk_client(flow: Flow, account: Any) -> SdkClient:
    key = flow.chain_world.account._key_obj.public_key.to_compressed_bytes()
    return SdkClient(key, account=account)


def test_an_encrypted_session_of_the_depositor_needs_no_token(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    stranger = encrypted_init(flow, sdk_client(flow, Account.create()), job_id)
    assert stranger["code"] == "not_depositor"
    assert encrypted_init(flow, sdk_client(flow, depositor.account), job_id)["type"] == "session_init_ack"
    assert flow.session(job_id).bound_by == "depositor"


def test_an_encrypted_session_of_an_authorized_client_needs_no_token(flow: Flow, depositor: Depositor) -> None:
    job_id, client = depositor.open_job(), Account.create()
    assert depositor.authorize(depositor.grant(job_id, client=client.address.lower())).status == 200
    assert encrypted_init(flow, sdk_client(flow, client), job_id)["type"] == "session_init_ack"
    assert flow.session(job_id).bound_by == "authorization"


# First claim ------------------------------------------------------------------------------------


@pytest.fixture
def first_claim(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Depositor:
    monkeypatch.setattr(SERVING, "spending", SpendingPolicy.FIRST_CLAIM)
    return Depositor(flow)


def test_the_first_http_caller_gets_a_token_and_nobody_else_spends(flow: Flow, first_claim: Depositor) -> None:
    job_id = first_claim.open_job()
    first = flow.post(prompt_body(5, job_id=job_id))
    token = first.json["billing"]["session_token"]
    assert flow.post(prompt_body(5, job_id=job_id)).json["error_type"] == "not_depositor"
    again = flow.post(prompt_body(5, job_id=job_id), headers={"Authorization": f"Bearer {token}"})
    assert again.status == 200 and "session_token" not in again.json["billing"]
    assert flow.tracked(job_id) == 10


@pytest.mark.parametrize("spoken", [0, 3])
@pytest.mark.parametrize("asked", ["inference", "one choice", "two choices"])
def test_a_first_caller_whose_request_fails_gets_its_token_all_the_same(
    flow: Flow, first_claim: Depositor, asked: str, spoken: int
) -> None:
    job_id = first_claim.open_job()
    error = GenerationFailed("It broke.") if spoken else ContextLengthExceeded(prompt_tokens=3000, context_length=2048)
    flow.use(ScriptedReply(tokens=endless().tokens[:spoken], error=error))
    path = "/v1/inference" if asked == "inference" else "/v1/chat/completions"
    body = {**(prompt_body(5) if asked == "inference" else CHAT), "job_id": str(job_id)}
    failed = flow.post(body | ({"n": 2} if asked == "two choices" else {}), path=path)
    assert failed.status >= 400
    token = failed.json.get("error", failed.json)["details"]["billing"]["session_token"]
    flow.use(endless())
    assert flow.post(body, path=path).status == 403
    again = flow.post(body, path=path, headers={"X-Fabstir-Session-Token": token})
    assert again.status == 200 and "session_token" not in again.json["billing"]


def test_the_refusal_of_a_caller_who_is_known_has_no_billing_note(flow: Flow, first_claim: Depositor) -> None:
    job_id = first_claim.open_job()
    token = flow.post(prompt_body(5, job_id=job_id)).json["billing"]["session_token"]
    flow.use(ScriptedReply(tokens=(), error=ContextLengthExceeded(prompt_tokens=3000, context_length=2048)))
    refused = flow.post(prompt_body(5, job_id=job_id), headers={"X-Fabstir-Session-Token": token})
    assert (refused.status, "billing" in refused.json["details"]) == (400, False)


def test_the_first_socket_goes_on_and_others_need_its_token(flow: Flow, first_claim: Depositor) -> None:
    job_id = first_claim.open_job()
    init = {"type": "session_init", "job_id": str(job_id), "chain_id": 31337}

    async def play() -> None:
        async with flow.socket() as first, flow.socket() as second:
            token = (await first.ask(init))[-1]["billing"]["session_token"]
            assert (await second.ask(init))[-2]["code"] == "not_depositor"
            assert (await first.ask({"type": "prompt", **prompt_body(5)}))[-1]["reason"] == "complete"
            assert (await second.ask({**init, "session_token": token}))[-1]["type"] == "session_init_ack"

    flow.run(play())
    assert flow.session(job_id).bound_by == "connection"


def test_the_depositor_is_not_locked_out_by_whoever_came_first(flow: Flow, first_claim: Depositor) -> None:
    job_id = first_claim.open_job()
    assert flow.post(prompt_body(5, job_id=job_id)).status == 200
    headers = {"Authorization": f"Bearer {first_claim.token(job_id)}"}
    assert flow.post(prompt_body(5, job_id=job_id), headers=headers).status == 200


def test_of_many_who_come_at_once_one_is_first(flow: Flow, first_claim: Depositor) -> None:
    job_id = first_claim.open_job()

    async def play() -> list[Answer]:
        sent = [await flow.exchange(prompt_body(5, job_id=job_id)).send() for _ in range(6)]
        return [await exchange.answer() for exchange in sent]

    assert sorted(answer.status for answer in flow.run(play())) == [200, 403, 403, 403, 403, 403]
    assert flow.tracked(job_id) == 5
