"""Proofs under leases: kept while a prover works, given back when it dies, missed aloud when there is none."""

from __future__ import annotations

import time
from typing import Any

import pytest

from settlement import proving, sealing
from settlement.models import Checkpoint, CheckpointState
from settlement.proofs.mock import MockProver
from settlement.proofs.prover import Proof, ProofRefused, ProverUnavailable
from settlement.proofs.witness import Witness
from tests.settlement.conftest import Settling

PROVED, PROVING, RETRY_AT, SETTLED = (
    CheckpointState.PROVED,
    CheckpointState.PROVING,
    CheckpointState.RETRY_AT,
    CheckpointState.SETTLED,
)


def _sealed(settling: Settling, jobs: int = 1) -> list[Checkpoint]:
    for session in [settling.open_session() for _ in range(jobs)]:
        settling.generate(session, 150)
    settling.pass_time(2)
    assert sealing.seal_due(settling.chain) == jobs
    return list(Checkpoint.objects.order_by("id"))


class SlowProver(MockProver):
    """Proves once its lease has been renewed while it was at work."""

    def __init__(self) -> None:
        self.leases: list[Any] = []

    def prove(self, witness: Witness) -> Proof:
        for _ in range(2000):
            lease = Checkpoint.objects.values_list("retry_at", flat=True).get()
            if not self.leases or lease != self.leases[-1]:
                self.leases.append(lease)
            if len(self.leases) > 2:
                break
            time.sleep(0.005)
        return super().prove(witness)


@pytest.mark.django_db(transaction=True)
def test_a_prover_keeps_its_lease_for_as_long_as_it_works(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    _sealed(settling)
    prover = SlowProver()
    monkeypatch.setattr(proving, "RENEW_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(proving, "accepted_prover", lambda client, marketplace: prover)
    assert proving.prove_due(settling.chain) == 1
    assert len(prover.leases) > 2
    assert prover.leases == sorted(prover.leases)
    assert Checkpoint.objects.get().state == PROVED


@pytest.mark.django_db
def test_the_chain_is_asked_once_which_prover_it_accepts(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    _sealed(settling, jobs=3)
    asked: list[bytes] = []
    marketplace = type(settling.chain.marketplace)
    real = marketplace.accepts_prover

    def accepts(self: Any, client: Any, *, selector: bytes) -> bool:
        asked.append(selector)
        return bool(real(self, client, selector=selector))

    monkeypatch.setattr(marketplace, "accepts_prover", accepts)
    assert proving.prove_due(settling.chain) == 3
    assert len(asked) == 1


@pytest.mark.django_db
def test_a_prover_that_is_away_loses_nothing_and_is_missed_aloud(
    settling: Settling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*args: Any) -> Any:
        raise ProverUnavailable("no prover is installed")

    _sealed(settling, jobs=2)
    with monkeypatch.context() as patch:
        patch.setattr(proving, "accepted_prover", away)
        assert proving.prove_due(settling.chain) == 0
        assert {row.state for row in Checkpoint.objects.all()} == {RETRY_AT}
        assert proving.watch_prover(settling.chain) is None
        settling.pass_time(601)
        assert proving.prove_due(settling.chain) == 0
        assert proving.watch_prover(settling.chain) == Checkpoint.objects.earliest("created_at").created_at
    (alert,) = [record for record in caplog.records if getattr(record, "event", "") == "nothing_proved"]
    assert (alert.levelname, vars(alert)["tokens"]) == ("ERROR", 300)
    settling.pass_time(700)
    settling.settle()
    assert {row.state for row in Checkpoint.objects.all()} == {SETTLED}
    assert proving.watch_prover(settling.chain) is None


@pytest.mark.django_db
def test_no_alert_while_other_checkpoints_are_being_proved(settling: Settling) -> None:
    _, second = _sealed(settling, jobs=2)
    settling.pass_time(601)
    Checkpoint.objects.filter(pk=second.pk).update(state=PROVING, retry_at=settling.clock.now() + proving.LEASE)
    assert proving.prove_due(settling.chain) == 1
    assert proving.watch_prover(settling.chain) is None
    settling.pass_time(601)
    assert proving.watch_prover(settling.chain) is not None
    assert [row.pk for row in proving.give_back_lost(settling.chain)] == [second.pk]


@pytest.mark.django_db
def test_a_proof_that_does_not_verify_is_never_submitted(
    settling: Settling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, proof: Proof, witness: Witness) -> None:
        raise ProofRefused("broken")

    (checkpoint,) = _sealed(settling)
    monkeypatch.setattr(MockProver, "verify", refuse)
    settling.settle()
    checkpoint.refresh_from_db()
    assert (checkpoint.state, checkpoint.proof) == (CheckpointState.FAILED, None)
    assert [record.levelname for record in caplog.records if getattr(record, "event", "") == "proof_refused"] == [
        "ERROR"
    ]
