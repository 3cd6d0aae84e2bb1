"""The ledger against the chain: what one of them does not say is found, job by job and claim by claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.models import Session
from settlement import chain_history, ledger
from settlement.models import Checkpoint, CheckpointState, LedgerCheck
from settlement.violations import Violation
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db


def found(settling: Settling) -> list[Violation]:
    return list(ledger.verify_against_chain(settling.chain))


def paid(settling: Settling) -> tuple[Session, Checkpoint]:
    session = settling.open_session()
    settling.generate(session, 100)
    settling.settle()
    (row,) = settling.checkpoints(session)
    assert row.state == CheckpointState.SETTLED
    return session, row


def change(row: Any, **fields: Any) -> Callable[[], Any]:
    """Past the domain, as a console would; returns how to put it back."""
    before = {name: getattr(row, name) for name in fields}
    rows = type(row)._base_manager.filter(pk=row.pk)
    rows.update(**fields)
    return lambda: rows.update(**before)


def test_a_paid_job_is_the_same_in_both(settling: Settling) -> None:
    session, _ = paid(settling)
    assert ledger.verify(settling.chain) == []
    assert ledger.check_chain(settling.chain) == 0
    assert LedgerCheck.objects.get(part="chain").counts == {"I3": 0, "I4": 0}
    history = ledger.read_history(settling.chain)
    assert history.complete
    assert [claim.tokens for claim in history.claims[int(session.job_id or 0)]] == [100]


def test_jobs_of_other_hosts_are_not_kept(settling: Settling) -> None:
    """A marketplace has as many jobs as all its hosts together."""
    session, _ = paid(settling)
    undo = change(session, job_id=10_000)
    history = ledger.read_history(settling.chain)
    assert (dict(history.claims), dict(history.ends)) == ({}, {})
    undo()
    assert len(ledger.read_history(settling.chain).claims) == 1


@pytest.mark.parametrize(
    ("invariant", "fields"),
    [
        ("I3", {"proof": b"another proof"}),
        ("I3", {"to_token": 101}),
        ("I3", {"host_amount": 180_001, "gross": 200_001}),
        ("I4", {"treasury_amount": 20_001, "gross": 200_001}),
        ("I3", {"state": CheckpointState.FAILED}),
    ],
    ids=["unknown proof", "other count", "other amount", "other share", "claimed after all"],
)
def test_a_difference_is_found_and_its_repair_clears_it(
    settling: Settling, invariant: str, fields: dict[str, Any]
) -> None:
    _, row = paid(settling)
    repair = change(row, **fields)
    violations = found(settling)
    assert invariant in {violation.invariant for violation in violations}
    assert all(violation.remedy for violation in violations)
    repair()
    assert found(settling) == []


def test_a_claim_made_past_this_node_is_found(settling: Settling) -> None:
    session = settling.open_session()
    settling.pass_time(10)
    settling.world.send(settling.world.claim(int(session.job_id or 0), 100), sender=settling.world.host)
    (violation,) = found(settling)
    assert (violation.invariant, "100 tokens claimed" in violation.message) == ("I3", True)
    change(session, tokens_inherited=100)
    assert found(settling) == []


def test_a_claim_on_its_way_is_no_difference(settling: Settling) -> None:
    session = settling.open_session()
    settling.generate(session, 100)
    settling.pass_time(2)
    settling.prepare_claims()
    assert found(settling) == []
    settling.broadcast()
    assert found(settling) == []


def test_a_deployment_of_unknown_age_is_read_from_this_ledgers_first_block(settling: Settling) -> None:
    paid(settling)
    unknown = replace(settling.chain.deployment, deployed_at_block=None)
    chain = replace(settling.chain, deployment=unknown)
    asked: list[int] = []

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(settling.chain.client, name)

        def logs(self, *, addresses: Any, from_block: int, to_block: int) -> Any:
            asked.append(from_block)
            return settling.chain.client.logs(addresses=addresses, from_block=from_block, to_block=to_block)

    history = chain_history.read(replace(chain, client=Client()))
    first = Checkpoint.objects.get().transaction
    assert first is not None
    assert asked[0] == first.receipt.block_number
    assert not history.complete
    assert len(history.claims) == 1


def test_a_fee_that_changed_is_named(settling: Settling) -> None:
    paid(settling)
    (violation,) = chain_history.splits_are_right(settling.chain, fee_basis_points=500)
    assert violation.invariant == "I4"
    assert "fee" in violation.remedy
