"""Mined is not paid: only the marketplace's own event for exactly this claim is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from settlement.chain.marketplace import AcceptedClaim
from settlement.models import CheckpointState, Earning, EarningKind, Transaction, TransactionState
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db


class Misreporting:
    """The real marketplace, but its events say something else."""

    def __init__(self, real: Any, change: dict[str, Any] | None) -> None:
        self._real = real
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def accepted_claims(self, logs: Any) -> list[AcceptedClaim]:
        if self._change is None:
            return []
        return [replace(claim, **self._change) for claim in self._real.accepted_claims(logs)]


@pytest.mark.parametrize(
    "change",
    [None, {"job_id": 10**9}, {"host": "0x" + "9" * 40}, {"tokens": 151}, {"proof_hash": "0x" + "9" * 64}],
    ids=["no event", "another job", "another host", "another count", "another proof"],
)
def test_a_claim_without_its_own_event_is_not_paid(settling: Settling, change: dict[str, Any] | None) -> None:
    marketplace: Any = Misreporting(settling.chain.marketplace, change)
    misled = replace(settling, chain=replace(settling.chain, marketplace=marketplace))
    session = misled.open_session()
    misled.generate(session, 150)
    misled.settle()
    session.refresh_from_db()
    (checkpoint,) = misled.checkpoints(session)
    assert Transaction.objects.get().state == TransactionState.FINAL
    assert checkpoint.state == CheckpointState.FAILED
    assert "without the marketplace's event" in checkpoint.reason
    assert (checkpoint.gross, session.tokens_claimed) == (None, 0)
    assert not Earning.objects.filter(kind=EarningKind.HOST).exists()


def test_two_claims_in_one_block_are_told_apart(settling: Settling) -> None:
    first, second = settling.open_session(), settling.open_session()
    settling.generate(first, 110)
    settling.generate(second, 130)
    settling.settle()
    assert settling.earned(first, EarningKind.HOST) == [110 * 1800]
    assert settling.earned(second, EarningKind.HOST) == [130 * 1800]


def test_a_claim_that_reverts_on_the_chain_costs_gas_and_is_tried_again(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 150)
    settling.pass_time(2)
    settling.prepare_claims()
    world = settling.world
    world.w3.provider.make_request("evm_setAutomine", [False])
    try:
        settling.broadcast()
        # The verifier is gone when the claim is mined; it was there when the claim was simulated.
        selector = world.read(world.mock.selector())
        call = world.proofs.unlist_verifier(selector)
        fields = {"from": world.owner, "to": call.to, "data": call.data, "gas": 10**6, "maxPriorityFeePerGas": 10**12}
        world.w3.eth.send_transaction({**fields, "maxFeePerGas": 10**12 + 10**10})
        world.w3.provider.make_request("evm_mine", [])
    finally:
        world.w3.provider.make_request("evm_setAutomine", [True])
    settling.confirm()
    (checkpoint,) = settling.checkpoints(session)
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "reverted: " in checkpoint.reason
    assert len(settling.earned(session, EarningKind.GAS)) == 1
    world.send(world.proofs.list_verifier(world.mock.address), sender=world.owner)
    settling.pass_time(10)
    settling.settle()
    assert settling.states(session) == [CheckpointState.SETTLED]
    assert world.job(session.job_id).tokens_used == 150
    assert len(settling.earned(session, EarningKind.GAS)) == 2
    assert [row.state for row in Transaction.objects.order_by("id")] == ["reverted", "final"]
