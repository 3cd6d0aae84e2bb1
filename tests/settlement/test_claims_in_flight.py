"""Claims on their way together: of different jobs at once, of one job as soon as the one before is mined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.test.utils import CaptureQueriesContext

from jobs.models import Session
from settlement import checkpoints, claims, following, pacing, proving, sealing
from settlement.chain import local
from settlement.host_chain import HostChain
from settlement.models import Checkpoint, CheckpointState, EarningKind, Receipt, Transaction
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

MINED, SETTLED, SEALED, PROVED = (
    CheckpointState.MINED,
    CheckpointState.SETTLED,
    CheckpointState.SEALED,
    CheckpointState.PROVED,
)


def _environment(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, **changes))


def _mine_claims(settling: Settling) -> None:
    settling.pass_time(2)
    settling.prepare_claims()
    settling.broadcast()
    settling.confirm()


def test_the_next_range_is_claimed_while_the_one_before_is_mined_and_not_final(settling: Settling) -> None:
    deep = settling.with_confirmations(8)
    session = deep.open_session()
    for tokens in (120, 110, 130):
        deep.generate(session, tokens)
        _mine_claims(deep)
    assert deep.states(session) == [MINED] * 3
    assert deep.world.job(session.job_id).tokens_used == 360
    assert deep.earned(session, EarningKind.HOST) == []
    local.mine(deep.world.url, blocks=8)
    deep.confirm()
    assert deep.states(session) == [SETTLED] * 3
    assert deep.earned(session, EarningKind.HOST) == [120 * 1800, 110 * 1800, 130 * 1800]


def test_nothing_more_of_a_job_is_sealed_while_its_claim_is_not_in_a_block(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 120)
    settling.pass_time(2)
    settling.prepare_claims()
    settling.generate(session, 120)
    assert sealing.seal_due(settling.chain) == 0
    settling.broadcast()
    settling.confirm()
    settling.pass_time(2)
    assert sealing.seal_due(settling.chain) == 1


def test_the_rate_counts_from_the_block_of_the_last_mined_claim(settling: Settling) -> None:
    deep = settling.with_confirmations(8)
    session = deep.open_session()
    deep.generate(session, 120)
    _mine_claims(deep)
    session.refresh_from_db()
    assert session.last_claim_at == Receipt.objects.get().block_time
    assert session.tokens_claimed == 0


def test_a_reorg_gives_the_rate_back_its_earlier_start(settling: Settling) -> None:
    deep = settling.with_confirmations(8)
    session = deep.open_session()
    first_at = None
    for tokens in (120, 110):
        deep.generate(session, tokens)
        _mine_claims(deep)
        session.refresh_from_db()
        first_at = first_at or session.last_claim_at
    assert session.last_claim_at > first_at
    second = deep.checkpoints(session)[1]
    assert checkpoints.take_back(second, reason="block gone in a reorg")
    session.refresh_from_db()
    assert session.last_claim_at == first_at
    assert checkpoints.take_back(deep.checkpoints(session)[0], reason="block gone in a reorg")
    session.refresh_from_db()
    assert session.last_claim_at is None


def test_two_claims_of_a_job_never_wait_for_the_same_block(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 250)
    settling.pass_time(2)
    session.refresh_from_db()
    for tokens in (120, 130):
        checkpoints.seal(session, tokens=tokens, closing=False)
        session.refresh_from_db()
    proving.prove_due(settling.chain)
    assert claims.submit_due(settling.chain) == 1
    assert claims.submit_due(settling.chain) == 0
    assert settling.states(session) == [CheckpointState.QUEUED, PROVED]
    settling.settle()
    assert settling.states(session) == [SETTLED] * 2
    assert settling.world.job(session.job_id).tokens_used == 250


def test_two_workers_never_put_two_claims_of_a_job_on_their_way_together(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = settling.open_session()
    settling.generate(session, 250)
    settling.pass_time(2)
    session.refresh_from_db()
    first = checkpoints.seal(session, tokens=120, closing=False)
    session.refresh_from_db()
    checkpoints.seal(session, tokens=130, closing=False)
    proving.prove_due(settling.chain)
    # This worker reads the job's claims while the first waits; before it goes on, another submits that one.
    assert first is not None
    proved = Checkpoint.objects.filter(pk=first.pk)
    proved.update(state=CheckpointState.RETRY_AT, retry_at=settling.clock.now() + timedelta(seconds=60))
    read_pace = pacing.read_pace

    def meanwhile(chain: HostChain) -> pacing.Pace:
        pace = read_pace(chain)
        monkeypatch.setattr(pacing, "read_pace", read_pace)
        proved.update(retry_at=settling.clock.now())
        assert claims.submit_due(chain) == 1
        return pace

    monkeypatch.setattr(pacing, "read_pace", meanwhile)
    assert claims.submit_due(settling.chain) == 0
    assert settling.states(session) == [CheckpointState.QUEUED, PROVED]
    settling.settle()
    assert settling.states(session) == [SETTLED] * 2
    assert settling.world.job(session.job_id).tokens_used == 250


@pytest.mark.parametrize("resumed", [False, True])
def test_a_claim_that_is_paused_while_it_is_being_queued_gets_no_transaction(
    settling: Settling, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    sealing.seal_due(settling.chain)
    proving.prove_due(settling.chain)
    read_pace = pacing.read_pace

    def meanwhile(chain: HostChain) -> pacing.Pace:
        assert checkpoints.pause(session.checkpoints.get(), actor="ada", reason="a look first")
        assert not resumed or checkpoints.resume(session.checkpoints.get(), actor="ada")
        return read_pace(chain)

    monkeypatch.setattr(pacing, "read_pace", meanwhile)
    assert claims.submit_due(settling.chain) == 0
    assert not Transaction.objects.exists()
    assert settling.states(session) == [CheckpointState.RETRY_AT if resumed else CheckpointState.PAUSED]


def test_the_chain_s_clock_decides_where_it_is_ahead_of_this_machine_s(settling_on: Callable[..., Settling]) -> None:
    settling = settling_on(expected_tokens_per_second=10)
    session = settling.open_session()
    settling.generate(session, 250)
    settling.at(session, seconds=60)
    settling.clock.offset -= timedelta(seconds=59)
    assert pacing.chain_now(settling.chain) == session.job_started_at + timedelta(seconds=60)
    settling.prepare_claims()
    assert [row.tokens for row in settling.checkpoints(session)] == [250]


def test_a_claim_that_brings_less_than_its_gas_waits_and_is_made_before_the_deadline(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = settling.open_session(max_duration=24 * 3600)
    settling.generate(session, 120)
    settling.settle(rounds=1)  # the first claim tells what claims cost
    settling.generate(session, 120)
    # A coin for a millionth of a cent: no claim in USDC is worth less than its gas. Then the reverse.
    _environment(monkeypatch, value_to_gas_ratio=2, native_price_usdc=10**18)
    settling.settle(rounds=1)
    assert settling.states(session) == [SETTLED]
    _environment(monkeypatch, value_to_gas_ratio=2, native_price_usdc=1)
    settling.settle(rounds=1)
    assert settling.states(session) == [SETTLED] * 2
    settling.generate(session, 120)
    _environment(monkeypatch, value_to_gas_ratio=2, native_price_usdc=10**18)
    session.refresh_from_db()
    assert session.idle_timeout_seconds is not None
    settling.pass_time(session.idle_timeout_seconds - 170)
    settling.settle(rounds=1)
    assert settling.states(session) == [SETTLED] * 3


def test_a_claim_s_cost_is_tied_to_its_value(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, native_price_usdc=1)
    session = settling.open_session()
    for _ in range(2):
        settling.generate(session, 120)
        settling.settle(rounds=1)
    first, second = Transaction.objects.order_by("id")
    assert first.cost_limit is None  # nothing was ever claimed, so that nobody knew what claims cost
    assert second.cost_limit == 120 * 1800 * 10**18


def test_idle_sessions_cost_no_query_each(settling: Settling) -> None:
    rows = [
        Session(
            deployment=settling.chain.key,
            job_id=10_000 + number,
            token_budget=1000,
            tokens_tracked=99,
            last_activity_at=settling.clock.now(),
        )
        for number in range(300)
    ]
    Session.objects.bulk_create(rows)
    with CaptureQueriesContext(connections["default"]) as queries:
        assert sealing.seal_due(settling.chain) == 0
        assert proving.prove_due(settling.chain) == 0
        assert claims.submit_due(settling.chain) == 0
        assert following.follow_transactions(settling.chain) == 0
    assert len(queries) < 12


def test_a_pass_asks_the_chain_the_same_few_questions_for_one_claim_and_for_many(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    many = type(settling.chain.client)
    real = many.rpc

    def rpc(client: Any, method: str, *params: Any) -> Any:
        asked.append(method)
        return real(client, method, *params)

    monkeypatch.setattr(many, "rpc", rpc)
    counts = []
    for jobs in (1, 5):
        for session in [settling.open_session() for _ in range(jobs)]:
            settling.generate(session, 120)
        settling.pass_time(2)
        asked.clear()
        settling.prepare_claims()
        counts.append(len(asked))
        settling.broadcast()
        settling.confirm()
    # The second pass knows what claims cost, and asks for today's price.
    assert counts[1] <= counts[0] + 6
    assert Checkpoint.objects.filter(state=SETTLED).count() == 6
