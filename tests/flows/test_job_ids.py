"""Which job a request means, and which jobs are served."""

from __future__ import annotations

import pytest

from fabstir_site.serving import SERVING
from jobs.models import Session
from settlement.models import Checkpoint
from tests.chain.world import ETH
from tests.flows.flow import PATHS, Flow, prompt_body

SPELLINGS = [
    ("job_id", "{id}"),
    ("job_id", "int"),
    ("jobId", "{id}"),
    ("jobId", "{id}n"),
    ("session_id", "{id}"),
    ("session_id", "{id}n"),
    ("sessionId", "int"),
    ("sessionId", "{id}n"),
]


def test_a_session_id_without_a_job_on_the_chain_is_answered_and_never_claimed(flow: Flow):
    answer = flow.post(prompt_body(session_id="163163"))
    assert answer.status == 200
    assert answer.json["content"] == answer.json["response"] == answer.json["text"] == "abcdefghij"
    assert (answer.json["billing"]["claimable"], answer.json["billing"]["reason"]) == (False, "no_such_job")
    assert not Session.objects.with_job().exists()
    flow.drive()
    assert not Checkpoint.objects.exists()


def test_every_spelling_of_a_job_counts_for_it_and_is_claimed(flow: Flow):
    job_id = flow.world.open_usdc()
    for name, spelling in SPELLINGS:
        named = job_id if spelling == "int" else spelling.format(id=job_id)
        answer = flow.post(prompt_body(25, **{name: named})).json
        assert answer["billing"] == {
            "job_id": str(job_id),
            "claimable": True,
            "reason": "job",
            "message": f"Counted for job {job_id}; claimed from its deposit in checkpoints.",
        }
    assert flow.tracked(job_id) == 25 * len(SPELLINGS)
    flow.drive()
    assert flow.claims_of(job_id) == [200]
    assert flow.world.job(job_id).tokens_used == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spelling", ["job_id", "jobId", "session_id", "sessionId"])
def test_every_path_reads_every_name(flow: Flow, path: str, spelling: str):
    job_id = flow.world.open_usdc()
    assert flow.ask(path, tokens=7, **{spelling: f"{job_id}n"})["billing"]["claimable"] is True
    assert flow.tracked(job_id) == 7


def _of_another_host(flow: Flow) -> int:
    world = flow.world
    return world.open_usdc(host=world.w3.eth.accounts[2])


def _completed(flow: Flow) -> int:
    job_id = flow.world.open_usdc()
    flow.world.send(flow.world.complete(job_id), sender=flow.world.user)
    return job_id


def _expired(flow: Flow) -> int:
    job_id = flow.world.open_usdc(max_duration=3600)
    flow.chain_world.clock.advance(3600)
    return job_id


def _exhausted(flow: Flow) -> int:
    job_id = flow.world.open_eth(deposit=10**14, price=10**12)
    assert flow.post(prompt_body(100, job_id=job_id)).json["tokens_used"] == 100
    flow.engine.requests.clear()
    return job_id


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (_of_another_host, 403, "job_not_assigned"),
        (_completed, 409, "job_ended"),
        (_expired, 409, "job_expired"),
        (_exhausted, 402, "deposit_exhausted"),
    ],
)
def test_a_job_that_cannot_pay_this_host_is_refused_before_a_token(flow: Flow, make, status: int, code: str, path: str):
    job_id = make(flow)
    if path in ("http_json", "http_sse"):
        answer = flow.post(prompt_body(job_id=job_id, stream=path == "http_sse"))
        assert (answer.status, answer.json["error_type"]) == (status, code)
    else:
        end = flow.ask(path, tokens=5, job_id=job_id)
        assert (end["error"]["code"], end["reason"]) == (code, "error")
    assert flow.engine.requests == []


@pytest.mark.parametrize("body", [{}, {"job_id": 10**9}, {"session_id": "163163"}, {"session_id": "a chat"}])
def test_a_host_that_serves_paid_jobs_only_asks_for_payment(flow: Flow, monkeypatch: pytest.MonkeyPatch, body):
    monkeypatch.setattr(SERVING, "serve_unpaid", False)
    answer = flow.post(prompt_body(**body))
    assert (answer.status, answer.json["error_type"]) == (402, "payment_required")
    assert flow.engine.requests == []
    assert not Session.objects.exists()


def test_200_tokens_at_0_002_usdc_are_0_36_for_the_host_and_0_04_for_the_treasury(flow: Flow):
    world = flow.world
    before = world.balance(world.user, world.usdc.address)
    host_before = world.read(world.earnings.get_balance(host=world.host, token=world.usdc.address))
    job_id = world.open_usdc(deposit=2_000_000, price=2000)
    flow.post(prompt_body(200, job_id=job_id))
    flow.drive()
    flow.run(_end(flow, job_id))
    flow.drive()
    job = world.job(job_id)
    assert (job.withdrawn_by_host, job.paid_to_treasury, job.refunded_to_user) == (360_000, 40_000, 1_600_000)
    assert world.balance(world.user, world.usdc.address) == before + 1_600_000
    credited = world.read(world.earnings.get_balance(host=world.host, token=world.usdc.address)) - host_before
    checkpoint = Checkpoint.objects.get()
    assert (checkpoint.host_amount, checkpoint.treasury_amount, checkpoint.gross) == (360_000, 40_000, 400_000)
    assert credited == 360_000
    session = flow.session(job_id)
    booked = {(row.kind, row.token): row.amount for row in session.earnings.exclude(kind="gas")}
    usdc = world.usdc.address.lower()
    assert booked == {("host", usdc): 360_000, ("treasury", usdc): 40_000, ("refund", usdc): 1_600_000}
    assert session.state == "completed"
    assert all(row.token == ETH for row in session.earnings.filter(kind="gas"))


async def _end(flow: Flow, job_id: int) -> None:
    async with flow.socket() as socket:
        await socket.ask({"type": "session_init", "session_id": str(job_id)})
        assert (await socket.ask({"type": "session_end"}))[-1]["sessions_closed"] == 1
