"""What the network's client asks over HTTP, in the shapes that it takes and no others."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from django.conf import LazySettings
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys import keys
from eth_keys.constants import SECPK1_N

from fabstir_site.health import _has_key
from jobs.inference.scripted import reply_of
from settlement.host_key import HOST_KEY
from tests.flows.clients import Answer
from tests.flows.flow import Flow, prompt_body

CHALLENGE = "ab" * 32
SOMEBODY = keys.PrivateKey(b"\x01" * 32).public_key.to_compressed_bytes()


def got(flow: Flow, path: str) -> Answer:
    async def play() -> Answer:
        exchange = flow.exchange(b"", path=path, method="GET")
        return await (await exchange.send()).answer()

    return flow.run(play())


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/v1/inference", "//v1/inference", "/v1//inference"])
def test_an_answer_has_its_text_under_every_name_at_every_address_that_clients_make(flow: Flow, path: str):
    job = flow.world.open_usdc()
    body = prompt_body(5, sessionId=str(job), jobId=str(job))
    answer = flow.post(body, path=path)
    assert answer.json["response"] == answer.json["text"] == answer.json["content"] == "abcde"
    assert flow.tracked(job) == 5


@pytest.mark.parametrize("queries", [None, ["today"]])
def test_what_the_client_sends_is_taken_as_it_is(flow: Flow, queries: Any):
    """Its session's number in place of the prompt, and a search that nobody asked for, in some versions."""
    job = flow.world.open_usdc()
    searching = {"web_search": queries is not None, "max_searches": 5, "search_queries": queries}
    body = {"model": "tiny-vicuna", "prompt": str(job), "max_tokens": 200, "temperature": 0.7, **searching}
    answer = flow.post({**body, "chain_id": 31337, "sessionId": str(job), "jobId": str(job)})
    assert (answer.status, answer.json["tokens_used"], answer.json["web_search_performed"]) == (200, 200, False)
    assert flow.engine.requests[0].messages[-1].content == str(job)


def test_an_empty_answer_has_its_text_under_every_name_too(flow: Flow):
    flow.use(reply_of(""))
    answer = flow.post(prompt_body(5)).json
    assert [answer[name] for name in ("response", "text", "content")] == ["", "", ""]


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_a_challenge_is_signed_as_the_client_recovers_it(flow: Flow, prefix: str):
    body = flow.post({"challenge": prefix + CHALLENGE}, path="/v1/auth/challenge").json
    assert re.fullmatch(r"[0-9a-f]{128}", body["signature"])
    assert type(body["recid"]) is int
    assert body["recid"] in range(4)
    raw = bytes.fromhex(body["signature"])
    assert int.from_bytes(raw[32:]) <= SECPK1_N // 2
    digest = hashlib.sha256(bytes.fromhex(CHALLENGE)).digest()
    recovered = keys.Signature(raw + bytes((body["recid"],))).recover_public_key_from_msg_hash(digest)
    assert recovered.to_checksum_address() == flow.chain_world.account.address
    assert "0x" + recovered.to_compressed_bytes().hex() == body["publicKey"] == "0x" + HOST_KEY.public_key().hex()


@pytest.mark.parametrize("challenge", [None, 5, "", "ab", "zz" * 32, CHALLENGE + "ab", ["ab" * 32]])
def test_nothing_but_32_bytes_is_signed(flow: Flow, challenge: Any):
    answer = flow.post({"challenge": challenge}, path="/v1/auth/challenge")
    assert (answer.status, answer.json["details"]) == (400, {"field": "challenge"})


def test_the_checkpoints_of_a_job_are_listed_as_the_client_reads_them_and_as_the_chain_has_them(flow: Flow):
    job = flow.world.open_usdc()
    missing = got(flow, f"/v1/checkpoints/{job}")
    assert (missing.status, bool(missing.json["error"])) == (404, True)
    for _ in range(2):
        flow.ask("http_json", tokens=150, job_id=job)
        flow.drive()
    for spelling in (f"{job}", f"{job}n"):
        body = got(flow, f"/v1/checkpoints/{spelling}").json
        assert body["sessionId"] == str(job)
    assert body["hostAddress"] == flow.chain_world.account.address.lower()
    assert isinstance(body["hostSignature"], str)
    for position, entry in enumerate(body["checkpoints"]):
        assert (type(entry["index"]), entry["index"]) == (int, position)
        assert type(entry["timestamp"]) is int
        assert [type(end) for end in entry["tokenRange"]] == [int, int]
        assert re.fullmatch(r"0x[0-9a-f]{64}", entry["proofHash"])
        assert flow.world.read(flow.world.marketplace.used_proofs(bytes.fromhex(entry["proofHash"][2:])))
        assert isinstance(entry["deltaCid"], str)
        assert entry.get("proofCid", "absent") is not None
    assert [entry["tokenRange"] for entry in body["checkpoints"]] == [[0, 150], [150, 300]]
    text = json.dumps(body["checkpoints"], sort_keys=True, separators=(",", ":"))
    signer = Account.recover_message(encode_defunct(text=text), signature=body["hostSignature"])
    assert signer == flow.chain_world.account.address


@pytest.mark.parametrize("session", ["abc", "-1", "0", "1.5", "1" * 100])
def test_checkpoints_of_what_is_no_job_are_refused(flow: Flow, session: str):
    assert got(flow, f"/v1/checkpoints/{session}").status == 400


def test_health_is_one_body_for_both_of_its_readers(flow: Flow):
    body = got(flow, "/v1/health").json
    assert type(body["healthy"]) is bool
    assert body["status"] in ("healthy", "degraded", "unhealthy")
    assert isinstance(body["issues"], list)
    assert body["chain_id"] == 31337


def test_chains_are_listed_by_number(flow: Flow):
    body = got(flow, "/v1/chains").json
    assert [chain["chain_id"] for chain in body["chains"]] == [31337]


def test_status_has_every_number_that_a_hosts_tools_show(flow: Flow):
    body = got(flow, "/status").json
    assert body["status"] in ("active", "busy", "maintenance")
    for name in ("uptime_seconds", "active_sessions", "total_jobs_completed", "chain_id"):
        assert type(body[name]) is int, name
    assert isinstance(body["models_loaded"], list)
    assert isinstance(body["health_issues"], list)
    assert body["capabilities"]["encryption"] is True
    assert body["version"]


def test_a_node_without_a_key_says_so_and_signs_nothing(flow: Flow, settings: LazySettings):
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, host_private_key=None)
    assert not _has_key()
    assert flow.post({"challenge": CHALLENGE}, path="/v1/auth/challenge").status == 503
    assert got(flow, "/v1/checkpoints/1").status == 503

    async def play() -> list[dict]:
        async with flow.socket() as socket:
            payload = dict.fromkeys(("ciphertextHex", "aadHex"), "00" * 33)
            payload |= {"nonceHex": "00" * 24, "signatureHex": "11" * 65, "ephPubHex": SOMEBODY.hex()}
            return await socket.ask({"type": "encrypted_session_init", "session_id": "1", "payload": payload})

    assert flow.run(play())[0]["code"] == "ENCRYPTION_NOT_SUPPORTED"


@pytest.mark.parametrize("path", ["/v1/auth/challenge", "//v1/inference", "/v1/checkpoints/1", "/v1/health", "/status"])
def test_browsers_of_any_origin_may_ask(flow: Flow, path: str):
    answer = flow.run(_preflight(flow, path))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"


async def _preflight(flow: Flow, path: str) -> Answer:
    exchange = flow.exchange(b"", path=path, method="OPTIONS")
    scope = exchange._communicator.scope
    scope["headers"] += [
        (b"origin", b"https://app.example"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"content-type"),
    ]
    return await (await exchange.send()).answer()
