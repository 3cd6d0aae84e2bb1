"""The process dies between two steps; the next run finishes the work, and the chain sees it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs import sessions
from jobs.models import SessionState
from settlement import claims, earnings, following, proving, sealing
from settlement.chain import local
from settlement.chain.client import ChainClient
from settlement.chain.signer import LocalSigner
from settlement.models import (
    Attempt,
    CheckpointState,
    EarningKind,
    Receipt,
    Transaction,
    TransactionState,
)
from settlement.txmanager import confirmer, nonces, sending, starting
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db


class Killed(BaseException):
    """What no code catches."""


def _die(*args: Any, **kwargs: Any) -> Any:
    raise Killed


def _die_after(action: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        action(*args, **kwargs)
        raise Killed

    return run


def _mined(settling: Settling) -> int:
    return int(settling.world.w3.eth.get_transaction_count(settling.world.host))


# Where the process dies: module or class, name, and whether the step was done.
_BROADCAST = {
    "the lease is taken": (starting, "start_batch", False),
    "the attempt is signed, not stored": (LocalSigner, "sign", True),
    "the attempt is to be stored": (nonces, "start", False),
    "the attempt is stored, not sent": (nonces, "start", True),
    "the node has it, nobody knows": (ChainClient, "send_raws", True),
    "the answer is known, not stored": (sending, "record", False),
    "the answer is stored": (sending, "record", True),
}
_CONFIRM = {
    "a receipt is seen, not stored": (confirmer, "_record", False),
    "a receipt is stored, not final": (confirmer, "_record", True),
    "it is final, not matched": (following, "_confirm", False),
    "it is matched, not booked": (earnings, "book", False),
    "it is booked": (following, "_confirm", True),
}


def _assert_paid_once(settling: Settling, session: Any, *, mined_before: int) -> None:
    assert settling.states(session) == [CheckpointState.SETTLED]
    assert settling.world.job(session.job_id).tokens_used == 150
    assert _mined(settling) == mined_before + 1
    assert settling.earned(session, EarningKind.HOST) == [270_000]
    assert len(settling.earned(session, EarningKind.GAS)) == 1
    row = Transaction.objects.get()
    assert (row.state, row.attempts.count()) == (TransactionState.FINAL, 1)
    assert Receipt.objects.count() == 1
    session.refresh_from_db()
    assert session.tokens_claimed == 150


@pytest.mark.parametrize("step", [*_BROADCAST, *_CONFIRM])
def test_a_claim_is_mined_and_booked_once_wherever_the_process_dies(
    settling: Settling, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    settling.prepare_claims()
    before = _mined(settling)
    owner, name, done = (_BROADCAST | _CONFIRM)[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _die_after(getattr(owner, name)) if done else _die)
        with pytest.raises(Killed):
            settling.broadcast()
            settling.confirm()
    stored = list(Attempt.objects.values_list("raw", flat=True))
    settling.settle()
    _assert_paid_once(settling, session, mined_before=before)
    assert stored in ([], list(Attempt.objects.values_list("raw", flat=True)))


@pytest.mark.parametrize(("owner", "step"), [(sealing, "seal_due"), (proving, "prove_due"), (claims, "submit_due")])
def test_preparing_a_claim_survives_a_death_after_each_step(
    settling: Settling, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    before = _mined(settling)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, _die_after(getattr(owner, step)))
        with pytest.raises(Killed):
            settling.prepare_claims()
    settling.settle()
    _assert_paid_once(settling, session, mined_before=before)


def test_a_death_while_proving_waits_for_the_lease_and_goes_on(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    before = _mined(settling)
    with monkeypatch.context() as patch:
        patch.setattr(proving, "_prove", _die)
        with pytest.raises(Killed):
            settling.prepare_claims()
    assert settling.states(session) == [CheckpointState.PROVING]
    settling.pass_time(601)
    settling.settle()
    _assert_paid_once(settling, session, mined_before=before)


def test_a_reorg_takes_the_claim_back_and_it_is_sent_again_and_booked_once(settling: Settling) -> None:
    deep = settling.with_confirmations(3)
    session = deep.open_session()
    local.mine(deep.world.url, blocks=3)
    deep.generate(session, 150)
    deep.pass_time(2)
    deep.prepare_claims()
    before = _mined(deep)
    deep.broadcast()
    deep.confirm()
    assert deep.states(session) == [CheckpointState.MINED]
    local.set_automine(deep.world.url, enabled=False)
    local.reorganise(deep.world.url, depth=1)
    try:
        deep.watch()
        following.follow_transactions(deep.chain)
        row = Transaction.objects.get()
        assert (row.state, deep.states(session)) == (TransactionState.SENT, [CheckpointState.REORGED])
        assert not Receipt.objects.exists()
        assert deep.earned(session, EarningKind.HOST) == []
        deep.confirm()
        assert deep.states(session) == [CheckpointState.SENT]
    finally:
        local.set_automine(deep.world.url, enabled=True)
    deep.broadcast()
    local.mine(deep.world.url, blocks=4)
    deep.confirm()
    _assert_paid_once(deep, session, mined_before=before)
    assert "reorged" in deep.checkpoints(session)[0].events.values_list("to_state", flat=True)


def test_a_chain_that_lost_final_blocks_does_not_block_the_sender(settling: Settling) -> None:
    first, second = settling.open_session(), settling.open_session()
    before = local.snapshot(settling.world.url)
    settling.generate(first, 150)
    settling.settle(rounds=1)
    assert settling.states(first) == [CheckpointState.SETTLED]
    local.revert(settling.world.url, snapshot_id=before)
    assert settling.world.job(first.job_id).tokens_used == 0
    local.increase_time(settling.world.url, seconds=30)
    settling.generate(second, 120)
    settling.settle()
    assert settling.world.job(first.job_id).tokens_used == 150
    assert settling.world.job(second.job_id).tokens_used == 120
    assert settling.states(second) == [CheckpointState.SETTLED]
    assert settling.earned(first, EarningKind.HOST) == [270_000]


def test_a_completion_is_mined_once_when_the_process_dies_on_the_way(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = settling.open_session()
    sessions.close_session(session.pk, reason="idle")
    settling.close_sessions()
    before = _mined(settling)
    with monkeypatch.context() as patch:
        patch.setattr(sending, "record", _die)
        with pytest.raises(Killed):
            settling.broadcast()
    settling.settle()
    session.refresh_from_db()
    assert session.state == SessionState.COMPLETED
    assert _mined(settling) == before + 1
    assert Transaction.objects.count() == 1
