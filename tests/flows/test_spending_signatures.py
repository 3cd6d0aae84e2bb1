"""``POST /v1/session-auth``: what a signature opens, and the many ways in which it opens nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabstir_site.serving import SERVING
from jobs.access_rules import SpendingPolicy
from jobs.models import SessionAuthorization
from jobs.session_authorization import Grant
from tests.flows.depositors import Depositor
from tests.flows.flow import Flow

OTHER = "0x" + "77" * 20


@pytest.fixture
def depositor(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Depositor:
    monkeypatch.setattr(SERVING, "spending", SpendingPolicy.DEPOSITOR)
    return Depositor(flow)


def test_the_signed_text_is_what_the_documentation_says() -> None:
    grant = Grant(
        host="0x" + "aa" * 20,
        chain_id=84532,
        marketplace="0x" + "bb" * 20,
        job_id=163,
        client="0x" + "cc" * 20,
        issued_at=1767225600,
        expires_at=1767229200,
    )
    assert grant.text() == (
        "Fabstir: let this client use my session\n"
        "Host: 0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"
        "Chain: 84532\n"
        "Marketplace: 0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n"
        "Session: 163\n"
        "Client: 0xcccccccccccccccccccccccccccccccccccccccc\n"
        "Issued at: 1767225600\n"
        "Expires at: 1767229200"
    )


@pytest.mark.parametrize("scheme", ["eip191", "eip712"])
def test_a_depositor_s_signature_gives_a_token(depositor: Depositor, scheme: str) -> None:
    job_id = depositor.open_job()
    answer = depositor.authorize(depositor.grant(job_id), scheme=scheme)
    assert (answer.status, answer.json["session_id"]) == (200, str(job_id))
    assert answer.json["session_token"].startswith("fst_")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("scheme", ["eip191", "eip712"])
@pytest.mark.parametrize(
    "signed",
    [
        {"host": OTHER},
        {"chain_id": 8453},
        {"marketplace": OTHER},
        {"job_id": 4242},
        {"client": OTHER},
        {"expires_at": 2**39},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signature_for_something_else_opens_nothing(
    depositor: Depositor, scheme: str, signed: dict[str, Any]
) -> None:
    grant = depositor.grant(depositor.open_job())
    answer = depositor.authorize(grant, scheme=scheme, signed=replace(grant, **signed))
    assert (answer.status, answer.json["error_type"]) == (401, "authorization_refused")
    assert not SessionAuthorization.objects.exists()


def test_another_account_s_signature_opens_nothing(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    assert Depositor(flow).authorize(depositor.grant(job_id)).status == 401


def test_a_signature_opens_once(depositor: Depositor) -> None:
    grant = depositor.grant(depositor.open_job())
    assert depositor.authorize(grant).status == 200
    again = depositor.authorize(grant)
    assert again.status == 401 and "used before" in again.json["message"]


@pytest.mark.parametrize(
    ("issued", "expires", "said"),
    [(-7200, -1, "expired"), (3600, 7200, "future"), (0, 86401, "24 hours"), (10, 5, "after issuedAt")],
)
def test_a_signature_out_of_its_time_opens_nothing(depositor: Depositor, issued: int, expires: int, said: str) -> None:
    grant = depositor.grant(depositor.open_job())
    now = grant.issued_at
    answer = depositor.authorize(depositor.grant(grant.job_id, issued_at=now + issued, expires_at=now + expires))
    assert answer.status == 401 and said in answer.json["message"]


def test_a_token_expires_with_its_signature(flow: Flow, depositor: Depositor) -> None:
    job_id = depositor.open_job()
    headers = {"Authorization": f"Bearer {depositor.token(job_id)}"}
    flow.chain_world.clock.advance(3601)
    refusal = flow.post({"model": "scripted", "prompt": "x", "max_tokens": 5, "job_id": job_id}, headers=headers)
    assert (refusal.status, refusal.json["error_type"]) == (401, "invalid_session_token")


@pytest.mark.parametrize(
    "fields",
    [
        {"sessionId": "many"},
        {"clientAddress": "0x12"},
        {"scheme": "hope"},
        {"signature": "0xzz"},
        {"signature": "0x" + "00" * 64},
        {"issuedAt": "now"},
        {"expiresAt": None},
    ],
    ids=str,
)
def test_what_is_malformed_is_a_400_that_names_the_field(depositor: Depositor, fields: dict[str, Any]) -> None:
    answer = depositor.authorize(depositor.grant(depositor.open_job()), **fields)
    assert (answer.status, answer.json["details"]["field"]) == (400, next(iter(fields)))


@pytest.mark.parametrize("signature", ["0x" + "00" * 65, "0x" + "ff" * 64 + "1b", "0x" + "11" * 64 + "1d"])
def test_what_no_key_can_have_signed_is_a_401(depositor: Depositor, signature: str) -> None:
    assert depositor.authorize(depositor.grant(depositor.open_job()), signature=signature).status == 401


def test_a_job_that_does_not_exist_cannot_be_authorized(depositor: Depositor) -> None:
    assert depositor.authorize(depositor.grant(10**9)).status == 401


def test_a_platform_names_clients_for_its_own_deposits_only(
    flow: Flow, depositor: Depositor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheme of existing clients: it names a client, gives nobody a token, and may be sent again."""
    platform, job_id = Depositor(flow), depositor.open_job()
    grant = depositor.grant(job_id, client=OTHER)
    scheme = "fc1-session-auth-v1"
    assert platform.authorize(grant, scheme=scheme).status == 401
    assert depositor.authorize(grant, scheme=scheme).status == 401
    monkeypatch.setattr(SERVING, "session_authorizers", {depositor.address: frozenset({platform.address})})
    for _ in range(2):
        answer = platform.authorize(grant, scheme=scheme)
        assert answer.status == 200 and "session_token" not in answer.json
    assert SessionAuthorization.objects.get().client_address == OTHER
    other_job = Depositor(flow).open_job()
    assert platform.authorize(depositor.grant(other_job, client=OTHER), scheme=scheme).status == 401
