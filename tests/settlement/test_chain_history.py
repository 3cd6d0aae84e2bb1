"""The ledger against the chain: what one of them does not say is found, job by job and claim by claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from jobs.models import Session
from settlement import chain_history, ledger
from settlement.chain.client import ChainUnavailable
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
    assert chain_history.whole(settling.chain).complete
    claims, end = chain_history.events_of_job(settling.chain, int(session.job_id or 0))
    assert ([claim.tokens for claim in claims], end) == ([100], None)


def test_jobs_of_other_hosts_are_nothing_to_this_ledger(settling: Settling) -> None:
    """A marketplace has as many jobs as all its hosts together."""
    session = settling.open_session()
    settling.pass_time(10)
    settling.world.send(settling.world.claim(int(session.job_id or 0), 100), sender=settling.world.host)
    undo = change(session, job_id=10_000)
    assert found(settling) == []
    undo()
    assert len(found(settling)) == 1


def test_the_hourly_look_reads_only_the_blocks_of_the_last_days_jobs(settling: Settling) -> None:
    old, first = paid(settling)
    _, newer = paid(settling)
    long_ago = timezone.now() - chain_history.RECENT - timedelta(hours=1)
    again = change(old, closed_at=long_ago, last_claim_at=long_ago)
    stretch = chain_history.recent(settling.chain)
    assert newer.transaction is not None
    assert stretch.first == newer.transaction.receipt.block_number
    change(first, host_amount=1, gross=20_001)
    change(newer, host_amount=1, gross=20_001)
    seen = {violation.message.split(":")[0] for violation in ledger.verify_against_chain(settling.chain, recent=True)}
    assert seen == {str(newer)}
    assert {violation.message.split(":")[0] for violation in found(settling)} == {str(first), str(newer)}
    again()
    assert ledger.check_chain(settling.chain) == len(found(settling)) > 0


def test_a_host_without_jobs_of_late_has_nothing_to_compare(settling: Settling) -> None:
    session, _ = paid(settling)
    long_ago = timezone.now() - chain_history.RECENT - timedelta(hours=1)
    change(session, closed_at=long_ago, last_claim_at=long_ago)
    stretch = chain_history.recent(settling.chain)
    assert stretch.first > stretch.last
    assert ledger.check_chain(settling.chain) == 0


def test_what_is_confirmed_while_the_chain_is_read_is_no_difference(settling: Settling) -> None:
    before = chain_history.whole(settling.chain)
    _, row = paid(settling)
    assert list(chain_history.claims_match(settling.chain, before)) == []
    (violation,) = chain_history.claims_match(settling.chain, replace(before, begun=timezone.now()))
    assert violation.message == f"{row}: confirmed here, not on the chain"


def test_a_node_that_is_behind_is_not_asked_what_the_chain_says(settling: Settling) -> None:
    paid(settling)
    ahead = replace(chain_history.whole(settling.chain), last=settling.chain.client.head().number + 1)
    with pytest.raises(ChainUnavailable, match="behind"):
        list(chain_history.claims_match(settling.chain, ahead))


def test_a_proof_that_the_chain_paid_twice_is_named(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    paid(settling)
    accepted_claims = settling.chain.marketplace.accepted_claims
    monkeypatch.setattr(settling.chain.marketplace, "accepted_claims", lambda logs: accepted_claims(logs) * 2)
    (violation,) = found(settling)
    assert "twice" in violation.message


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
    stretch = chain_history.whole(chain)
    first = Checkpoint.objects.get().transaction
    assert first is not None
    assert stretch.first == first.receipt.block_number
    assert not stretch.complete
    assert list(chain_history.claims_match(chain, stretch)) == []


def test_a_fee_that_changed_is_named(settling: Settling) -> None:
    paid(settling)
    (violation,) = chain_history.splits_are_right(
        settling.chain, chain_history.whole(settling.chain), fee_basis_points=500
    )
    assert violation.invariant == "I4"
    assert "fee" in violation.remedy
