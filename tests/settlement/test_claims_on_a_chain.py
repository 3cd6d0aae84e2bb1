"""From counted tokens to money on a real chain, without the engine. Every step is taken twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from jobs import sessions
from jobs.models import RequestState, Session, SessionState
from settlement import proving, sealing
from settlement.chain import local
from settlement.chain.bindings import ProofSystem
from settlement.models import CheckpointState, EarningKind, Transaction, TransactionState
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

PRICE = 2000


def test_250_tokens_are_claimed_as_counted_and_paid_to_host_and_treasury(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 250)
    settling.settle()
    session.refresh_from_db()
    (checkpoint,) = settling.checkpoints(session)
    assert (checkpoint.state, checkpoint.tokens) == (CheckpointState.SETTLED, 250)
    assert (checkpoint.gross, checkpoint.host_amount, checkpoint.treasury_amount) == (500_000, 450_000, 50_000)
    assert settling.earned(session, EarningKind.HOST) == [450_000]
    assert settling.earned(session, EarningKind.TREASURY) == [50_000]
    assert len(settling.earned(session, EarningKind.GAS)) == 1
    assert session.tokens_claimed == 250
    assert session.last_claim_at is not None
    job = settling.world.job(session.job_id)
    assert (job.tokens_used, job.withdrawn_by_host) == (250, 450_000)


def test_the_example_of_200_tokens_at_0_002_usdc(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 200)
    settling.settle()
    assert settling.earned(session, EarningKind.HOST) == [360_000]
    assert settling.earned(session, EarningKind.TREASURY) == [40_000]


def test_claims_are_increments_that_tile_what_was_counted(settling: Settling) -> None:
    session = settling.open_session()
    for tokens in (130, 120):
        settling.generate(session, tokens)
        settling.settle(rounds=1)
    assert [(row.from_token, row.to_token) for row in settling.checkpoints(session)] == [(0, 130), (130, 250)]
    assert settling.states(session) == [CheckpointState.SETTLED] * 2
    assert settling.world.job(session.job_id).tokens_used == 250


def test_fewer_tokens_than_the_minimum_wait_while_the_session_goes_on(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 99)
    settling.settle()
    assert settling.states(session) == []


@pytest.mark.parametrize("tokens", [1, 99])
def test_a_closing_claim_of_less_than_the_minimum_is_paid_and_completes_the_job(
    settling: Settling, tokens: int
) -> None:
    session = settling.open_session()
    settling.generate(session, tokens)
    sessions.close_session(session.pk, reason="client disconnected")
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert settling.states(session) == [CheckpointState.SETTLED]
    gross = tokens * PRICE
    assert settling.earned(session, EarningKind.HOST) == [gross - gross // 10]
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit - gross]
    assert list(Transaction.objects.values_list("kind", flat=True)) == ["closing_claim"]


def test_a_session_with_nothing_left_over_is_completed_without_a_claim(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.settle(rounds=1)
    sessions.close_session(session.pk, reason="idle")
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit - 150 * PRICE]
    kinds = Transaction.objects.order_by("id").values_list("kind", "state")
    assert list(kinds) == [("claim", "final"), ("complete", "final")]
    assert len(settling.earned(session, EarningKind.GAS)) == 2


def test_a_session_without_any_token_is_completed_and_refunded_whole(settling: Settling) -> None:
    session = settling.open_session()
    sessions.close_session(session.pk, reason="idle")
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]


def test_a_closing_session_waits_for_its_running_request(settling: Settling) -> None:
    session = settling.open_session()
    request = settling.generate(session, 40, state=RequestState.RUNNING)
    sessions.close_session(session.pk, reason="idle")
    settling.settle()
    assert settling.states(session) == []
    request.state, request.finished_at = RequestState.FINISHED, timezone.now()
    request.save()
    settling.settle()
    assert settling.states(session) == [CheckpointState.SETTLED]
    assert settling.world.job(session.job_id).tokens_used == 40


def test_a_deposit_used_up_is_claimed_to_the_last_token(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 600)
    session.refresh_from_db()
    assert session.tokens_tracked == 500
    settling.settle()
    assert settling.world.job(session.job_id).tokens_used == 500
    assert settling.earned(session, EarningKind.HOST) == [900_000]


def test_the_depositor_who_completes_first_leaves_tokens_unclaimed_and_says_so(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 120)
    settling.pass_time(2)
    settling.prepare_claims()
    settling.world.send(settling.world.complete(session.job_id), sender=settling.world.user)
    settling.settle()
    session.refresh_from_db()
    (checkpoint,) = settling.checkpoints(session)
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert session.tokens_tracked - session.tokens_claimed == 120
    assert checkpoint.state == CheckpointState.FAILED
    assert "NotActive" in checkpoint.reason
    assert settling.earned(session, EarningKind.REFUND) == [session.deposit]
    assert settling.earned(session, EarningKind.HOST) == []


def test_a_job_completed_by_its_depositor_before_anything_was_sealed_ends_the_session(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 50)
    settling.world.send(settling.world.complete(session.job_id), sender=settling.world.user)
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.ENDED_ON_CHAIN
    assert (session.tokens_tracked, session.tokens_claimed, settling.states(session)) == (50, 0, [])


def test_the_rate_rule_of_ten_tokens_per_second_paces_the_claims(
    settling_on: Callable[..., Settling],
) -> None:
    settling = settling_on(expected_tokens_per_second=10)
    session = settling.open_session()
    settling.generate(session, 250)
    settling.at(session, seconds=4)
    settling.prepare_claims()
    assert settling.states(session) == []  # 80 tokens would be allowed, which is below the minimum
    settling.at(session, seconds=6)
    settling.prepare_claims()
    assert [row.tokens for row in settling.checkpoints(session)] == [120]
    for _ in range(3):
        settling.pass_time(8)
        settling.settle(rounds=1)
    sessions.close_session(session.pk, reason="idle")
    settling.settle()
    assert settling.world.job(session.job_id).tokens_used == 250
    assert {*settling.states(session)} == {CheckpointState.SETTLED}


def test_a_closing_claim_above_the_rate_waits_and_is_then_paid_whole(
    settling_on: Callable[..., Settling],
) -> None:
    settling = settling_on(expected_tokens_per_second=10)
    session = settling.open_session()
    settling.clock.stop()
    settling.generate(session, 250)
    sessions.close_session(session.pk, reason="idle")
    settling.pass_time(3)
    settling.prepare_claims()
    (checkpoint,) = settling.checkpoints(session)
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "rate" in checkpoint.reason
    settling.pass_time(12)
    settling.settle()
    assert settling.states(session) == [CheckpointState.SETTLED]
    assert settling.world.job(session.job_id).tokens_used == 250


def test_completion_waits_for_the_dispute_window(settling_on: Callable[..., Settling]) -> None:
    settling = settling_on(dispute_window=30)
    session = settling.open_session()
    settling.generate(session, 20)
    sessions.close_session(session.pk, reason="idle")
    settling.settle(rounds=1)
    (checkpoint,) = settling.checkpoints(session)
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "DisputeWindowOpen" in checkpoint.reason
    for _ in range(4):
        settling.pass_time(30)
        settling.settle(rounds=1)
    session.refresh_from_db()
    assert settling.states(session) == [CheckpointState.SETTLED]
    assert session.state == SessionState.COMPLETED


def test_a_proof_system_that_lists_no_verifier_puts_the_claim_off_until_it_does(settling: Settling) -> None:
    world = settling.world
    verifier = world.mock.address
    world.send(ProofSystem(world.proofs.address).unlist_verifier(world.read(world.mock.selector())), sender=world.owner)
    session = settling.open_session()
    settling.generate(session, 100)
    settling.pass_time(2)
    settling.prepare_claims()
    (checkpoint,) = settling.checkpoints(session)
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "accepts none" in checkpoint.reason
    world.send(world.proofs.list_verifier(verifier), sender=world.owner)
    settling.pass_time(60)
    settling.settle()
    assert settling.states(session) == [CheckpointState.SETTLED]


def test_several_jobs_are_settled_side_by_side(settling: Settling) -> None:
    opened = [settling.open_session() for _ in range(4)]
    for number, session in enumerate(opened):
        settling.generate(session, 100 + number)
    settling.settle()
    for number, session in enumerate(opened):
        assert settling.world.job(session.job_id).tokens_used == 100 + number
        assert settling.states(session) == [CheckpointState.SETTLED]
    nonces = Transaction.objects.order_by("nonce").values_list("nonce", flat=True)
    assert len(set(nonces)) == 4


def test_a_node_without_a_key_proves_but_never_queues_a_claim(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 120)
    settling.pass_time(2)
    keyless = replace(settling, chain=replace(settling.chain, signer=None))
    keyless.prepare_claims()
    assert keyless.states(session) == [CheckpointState.PROVED]
    assert not Transaction.objects.exists()


def test_a_claim_is_confirmed_only_at_the_configured_depth(settling: Settling) -> None:
    deep = settling.with_confirmations(3)
    session = deep.open_session()
    deep.generate(session, 100)
    deep.pass_time(2)
    deep.prepare_claims()
    deep.broadcast()
    for _ in range(2):
        deep.confirm()
        assert deep.states(session) == [CheckpointState.MINED]
        assert deep.earned(session, EarningKind.HOST) == []
        local.mine(deep.world.url)
    deep.confirm()
    assert deep.states(session) == [CheckpointState.SETTLED]


def test_our_own_completion_is_told_from_the_depositors_before_it_is_final(settling: Settling) -> None:
    deep = settling.with_confirmations(3)
    session = deep.open_session()
    sessions.close_session(session.pk, reason="idle")
    deep.close_sessions()
    deep.broadcast()
    for _ in range(4):
        deep.close_sessions()
        deep.index()
        deep.confirm()
        local.mine(deep.world.url)
    deep.close_sessions()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED


def test_the_indexer_may_be_faster_than_the_confirmer(settling: Settling) -> None:
    session = settling.open_session()
    sessions.close_session(session.pk, reason="idle")
    settling.close_sessions()
    settling.broadcast()
    settling.index()
    settling.confirm()
    settling.close_sessions()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED


def test_a_lost_prover_gives_its_checkpoint_back_after_the_lease(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 100)
    settling.pass_time(2)
    sealing.seal_due(settling.chain)
    lease = timezone.now() + timedelta(minutes=5)
    session.checkpoints.update(state=CheckpointState.PROVING, retry_at=lease)
    assert proving.prove_due(settling.chain) == 0
    settling.pass_time(301)
    assert proving.prove_due(settling.chain) == 1
    settling.settle()
    assert settling.states(session) == [CheckpointState.SETTLED]


def test_old_tokens_are_sealed_before_the_threshold(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ENVIRONMENT", replace(settings.ENVIRONMENT, checkpoint_threshold=400))
    session = settling.open_session()
    settling.generate(session, 120)
    settling.settle(rounds=1)
    assert settling.states(session) == []
    settling.pass_time(3599)
    settling.settle(rounds=1)
    assert Session.objects.get(pk=session.pk).tokens_claimed == 120
    assert Transaction.objects.get().state == TransactionState.FINAL
