"""What a refused, reverted or cancelled claim becomes, by what the refusal means; and what operators may hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from jobs import sessions
from jobs.models import SessionState
from settlement import checkpoints, claims, following, proving, sealing
from settlement.chain.bindings import ProofSystem, errors
from settlement.chain.client import ChainClient
from settlement.checkpoints import StepRefused
from settlement.models import Checkpoint, CheckpointState, EarningKind, Transaction, TransactionKind, TransactionState
from tests.fakes.scripted_rpc import CHAIN_ID, NodeError, ScriptedRpc
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

RETRY_AT, FAILED, PAUSED = CheckpointState.RETRY_AT, CheckpointState.FAILED, CheckpointState.PAUSED
QUEUED, SETTLED = CheckpointState.QUEUED, CheckpointState.SETTLED


def _queued(settling: Settling, tokens: int = 150) -> Checkpoint:
    session = settling.open_session()
    settling.generate(session, tokens)
    settling.pass_time(2)
    settling.prepare_claims()
    checkpoint = session.checkpoints.get()
    assert checkpoint.state == QUEUED
    return checkpoint


def _end(checkpoint: Checkpoint, **fields: Any) -> None:
    Transaction.objects.filter(pk=checkpoint.transaction_id).update(**fields)


@pytest.mark.parametrize(
    ("revert", "state", "at_least"),
    [
        ("SessionNotActive", FAILED, None),
        ("TooFewTokens", FAILED, None),
        ("NotAssignedHost", RETRY_AT, 10),
        ("UnknownJob", RETRY_AT, 10),
        ("ClaimTooFast", RETRY_AT, 1),
        ("DisputeWindowOpen", RETRY_AT, 5),
        ("SomethingNobodyKnows", RETRY_AT, 10),
        ("", RETRY_AT, 10),
    ],
)
def test_the_meaning_of_a_refusal_decides(
    settling: Settling, caplog: pytest.LogCaptureFixture, revert: str, state: str, at_least: int | None
) -> None:
    checkpoint = _queued(settling)
    _end(checkpoint, state=TransactionState.FAILED, revert=revert, reason=f"{revert}(1, 2)")
    before = timezone.now()
    assert following.follow_transactions(settling.chain) == 1
    assert following.follow_transactions(settling.chain) == 0
    checkpoint.refresh_from_db()
    assert checkpoint.state == state
    assert f"{revert}(1, 2)" in checkpoint.reason
    if at_least is None:
        assert [record.levelname for record in caplog.records if getattr(record, "event", "") == "claim_refused"] == [
            "ERROR"
        ]
        return
    assert checkpoint.retry_at is not None
    assert timedelta(seconds=at_least) <= checkpoint.retry_at - before <= timedelta(seconds=at_least * 1.1 + 5)


def test_a_claim_refused_by_a_node_that_is_behind_its_job_is_made_later_and_paid_once(
    settling: Settling, peer: ScriptedRpc
) -> None:
    checkpoint = _queued(settling)
    job_id = checkpoint.session.job_id
    assert job_id is not None
    unknown = errors.UnknownJob.SPEC.selector + job_id.to_bytes(32)
    peer.on("eth_estimateGas", NodeError("execution reverted", code=3, data="0x" + unknown.hex()))
    behind = replace(settling, chain=replace(settling.chain, client=ChainClient((peer.url,), chain_id=CHAIN_ID)))
    behind.broadcast()
    assert Transaction.objects.get().revert == "UnknownJob"
    assert peer.sent() == []
    settling.confirm()
    assert settling.states(checkpoint.session) == [RETRY_AT]
    settling.pass_time(30)
    settling.settle()
    assert settling.states(checkpoint.session) == [SETTLED]
    assert settling.earned(checkpoint.session, EarningKind.HOST) == [270_000]
    assert Transaction.objects.filter(kind=TransactionKind.CLAIM, state=TransactionState.FINAL).count() == 1


def test_each_refusal_waits_longer_than_the_one_before_up_to_a_limit(settling: Settling) -> None:
    checkpoint = _queued(settling)
    waits: list[timedelta] = []
    keys = {Transaction.objects.get().key}
    settling.clock.stop()
    for _ in range(12):
        _end(checkpoint, state=TransactionState.FAILED, revert="SomethingNobodyKnows")
        following.follow_transactions(settling.chain)
        checkpoint.refresh_from_db()
        assert checkpoint.retry_at is not None
        waits.append(checkpoint.retry_at - timezone.now())
        settling.clock.offset += waits[-1]
        assert claims.submit_due(settling.chain) == 1
        checkpoint.refresh_from_db()
        assert checkpoint.transaction is not None
        keys.add(checkpoint.transaction.key)
    assert waits[:6] == sorted(waits[:6])
    assert waits[5] > 20 * waits[0]
    assert max(waits) <= timedelta(minutes=11)
    assert len(keys) == 13


def test_a_claim_that_was_mined_by_a_transaction_nobody_knows_is_confirmed_from_its_event(settling: Settling) -> None:
    checkpoint = _queued(settling)
    # The send whose answer was lost, and with it everything this node knew of it.
    settling.world.send(claims.claim_call(settling.chain, checkpoint), sender=settling.world.host)
    settling.pass_time(2)
    settling.broadcast()
    assert Transaction.objects.get().state == TransactionState.FAILED
    assert Transaction.objects.get().revert == "ProofAlreadyUsed"
    settling.confirm()
    checkpoint.refresh_from_db()
    assert (checkpoint.state, checkpoint.host_amount) == (SETTLED, 270_000)
    assert settling.earned(checkpoint.session, EarningKind.HOST) == [270_000]
    checkpoint.session.refresh_from_db()
    assert checkpoint.session.tokens_claimed == 150
    assert "found on the chain" in checkpoint.events.values_list("reason", flat=True)


def test_a_closing_claim_that_was_mined_unknown_to_this_node_is_not_given_up(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    sessions.close_session(session.pk, reason="idle")
    settling.pass_time(2)
    settling.prepare_claims()
    checkpoint = session.checkpoints.get()
    settling.world.send(claims.claim_call(settling.chain, checkpoint), sender=settling.world.host)
    settling.broadcast()
    assert Transaction.objects.get().revert == "SessionNotActive"
    settling.settle()
    session.refresh_from_db()
    assert settling.states(session) == [SETTLED]
    assert session.state == SessionState.COMPLETED
    assert settling.earned(session, EarningKind.HOST) == [270_000]


def test_a_claim_found_in_a_block_that_is_not_final_waits_for_it(settling: Settling) -> None:
    deep = settling.with_confirmations(50)
    checkpoint = _queued(deep)
    deep.world.send(claims.claim_call(deep.chain, checkpoint), sender=deep.world.host)
    deep.pass_time(2)
    deep.broadcast()
    following.follow_transactions(deep.chain)
    checkpoint.refresh_from_db()
    assert checkpoint.state == RETRY_AT
    assert "not final yet" in checkpoint.reason
    assert deep.earned(checkpoint.session, EarningKind.HOST) == []
    deep.pass_time(30)
    claims.submit_due(settling.chain)
    settling.broadcast()
    settling.confirm()
    assert settling.states(checkpoint.session) == [SETTLED]


def test_a_proof_that_another_claim_used_up_is_given_up(settling: Settling) -> None:
    checkpoint = _queued(settling)
    _end(checkpoint, state=TransactionState.FAILED, revert="ProofAlreadyUsed", reason="ProofAlreadyUsed(0x12)")
    following.follow_transactions(settling.chain)
    checkpoint.refresh_from_db()
    assert checkpoint.state == FAILED
    assert "no event on the chain states this claim" in checkpoint.reason
    assert settling.earned(checkpoint.session, EarningKind.HOST) == []


def test_a_cancelled_claim_is_held_until_somebody_resumes_it(settling: Settling) -> None:
    checkpoint = _queued(settling)
    _end(checkpoint, state=TransactionState.CANCELLED, reason="by ada: gas is dear")
    following.follow_transactions(settling.chain)
    settling.pass_time(3600)
    settling.prepare_claims()
    checkpoint.refresh_from_db()
    assert checkpoint.state == PAUSED
    assert "gas is dear" in checkpoint.reason
    assert checkpoints.resume(checkpoint, actor="ada", reason="gas is cheap")
    settling.settle()
    assert settling.states(checkpoint.session) == [SETTLED]
    assert "resumed by ada: gas is cheap" in checkpoint.events.values_list("reason", flat=True)
    assert Transaction.objects.count() == 2


def test_a_worker_that_is_late_moves_no_newer_try_of_a_claim(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both workers read that the first tries were refused; one of them is done before the other goes on."""
    rows = [_queued(settling), _queued(settling)]
    for row in rows:
        _end(row, state=TransactionState.FAILED, revert="SomethingNobodyKnows")
    wait = checkpoints.wait

    def meanwhile(checkpoint: Checkpoint, **options: Any) -> bool:
        monkeypatch.setattr(checkpoints, "wait", wait)
        assert following.follow_transactions(settling.chain) == 2
        settling.pass_time(30)
        assert claims.submit_due(settling.chain) == 2
        return wait(checkpoint, **options)

    monkeypatch.setattr(checkpoints, "wait", meanwhile)
    assert following.follow_transactions(settling.chain) == 0
    newest = list(Transaction.objects.order_by("pk"))[2:]
    for row, newer in zip(rows, newest, strict=True):
        row.refresh_from_db()
        assert (row.state, row.transaction, row.retries) == (QUEUED, newer, 1)
    settling.pass_time(3600)
    assert claims.submit_due(settling.chain) == 0
    settling.settle()
    assert [settling.states(row.session) for row in rows] == [[SETTLED], [SETTLED]]
    assert Transaction.objects.filter(state=TransactionState.FINAL, checkpoint__isnull=False).count() == 2


def test_an_operator_holds_what_no_transaction_carries(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    sealing.seal_due(settling.chain)
    checkpoint = session.checkpoints.get()
    assert checkpoints.pause(checkpoint, actor="ada", reason="a look first")
    settling.settle()
    checkpoint.refresh_from_db()
    assert (checkpoint.state, checkpoint.reason) == (PAUSED, "paused by ada: a look first")
    with pytest.raises(StepRefused, match="paused"):
        checkpoints.pause(checkpoint, actor="ada", reason="again")
    assert checkpoints.resume(checkpoint, actor="ada")
    settling.settle()
    checkpoint.refresh_from_db()
    assert checkpoint.state == SETTLED
    with pytest.raises(StepRefused, match="nothing to resume"):
        checkpoints.resume(checkpoint, actor="ada")


def test_a_claim_that_failed_is_tried_once_more_and_paid_once(settling: Settling) -> None:
    checkpoint = _queued(settling)
    _end(checkpoint, state=TransactionState.FAILED, revert="SessionNotActive")
    following.follow_transactions(settling.chain)
    checkpoint.refresh_from_db()
    with pytest.raises(StepRefused, match="retry"):
        checkpoints.resume(checkpoint, actor="ada")
    assert checkpoints.retry(checkpoint, actor="ada", reason="the registry was wrong")
    settling.settle()
    checkpoint.refresh_from_db()
    assert (checkpoint.state, checkpoint.retries) == (SETTLED, 1)
    assert settling.earned(checkpoint.session, EarningKind.HOST) == [270_000]
    assert "tried again by ada: the registry was wrong" in checkpoint.events.values_list("reason", flat=True)
    with pytest.raises(StepRefused, match="only what failed"):
        checkpoints.retry(checkpoint, actor="ada", reason="again")


def test_a_failed_claim_that_was_accepted_after_all_is_confirmed_when_it_is_tried_again(settling: Settling) -> None:
    checkpoint = _queued(settling)
    _end(checkpoint, state=TransactionState.FAILED, revert="SessionNotActive")
    following.follow_transactions(settling.chain)
    settling.world.send(claims.claim_call(settling.chain, checkpoint), sender=settling.world.host)
    checkpoint.refresh_from_db()
    assert checkpoint.state == FAILED
    assert checkpoints.retry(checkpoint, actor="ada", reason="verify_ledger says so")
    settling.settle()
    assert settling.states(checkpoint.session) == [SETTLED]
    assert settling.earned(checkpoint.session, EarningKind.HOST) == [270_000]
    assert settling.world.job(checkpoint.session.job_id).tokens_used == 150


def test_a_queued_claim_is_not_paused_behind_its_transaction_s_back(settling: Settling) -> None:
    checkpoint = _queued(settling)
    with pytest.raises(StepRefused, match="Cancel its transaction"):
        checkpoints.pause(checkpoint, actor="ada", reason="a look first")
    checkpoint.refresh_from_db()
    assert checkpoint.state == QUEUED


def test_a_claim_refused_before_it_is_sent_costs_nothing_and_is_made_later(settling: Settling) -> None:
    world = settling.world
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    sealing.seal_due(settling.chain)
    proving.prove_due(settling.chain)
    world.send(ProofSystem(world.proofs.address).unlist_verifier(world.read(world.mock.selector())), sender=world.owner)
    claims.submit_due(settling.chain)
    settling.broadcast()
    settling.confirm()
    assert settling.states(session) == [RETRY_AT]
    assert settling.earned(session, EarningKind.GAS) == []
    world.send(world.proofs.list_verifier(world.mock.address), sender=world.owner)
    settling.pass_time(30)
    settling.settle()
    assert settling.states(session) == [SETTLED]
