"""The ledger against the chain: what one of them does not say is found, job by job and claim by claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
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


def amounts_of(*rows: Checkpoint) -> list[Callable[[], Any]]:
    return [change(row, host_amount=1, gross=20_001) for row in rows]


def test_the_hourly_check_reads_on_from_the_last_one(settling: Settling) -> None:
    _, first = paid(settling)
    assert ledger.check_chain(settling.chain) == 0
    settling.pass_time(int(2 * chain_history.OVERLAP.total_seconds()))
    assert ledger.check_chain(settling.chain) == 0
    _, newer = paid(settling)
    stretch = chain_history.since(settling.chain, timedelta(0))
    assert first.transaction is not None
    assert newer.transaction is not None
    assert first.transaction.receipt.block_number < stretch.first <= newer.transaction.receipt.block_number
    repairs = amounts_of(first, newer)
    seen = {violation.message.split(":")[0] for violation in chain_history.claims_match(settling.chain, stretch)}
    assert seen == {str(newer)}
    # What was found stays in sight until it is mended: as long as anything is wrong, all is looked at.
    ledger.check_chain(settling.chain)
    ledger.check_chain(settling.chain)
    shown = {finding["message"].split(":")[0] for finding in LedgerCheck.objects.get(part="chain").findings}
    assert shown == {str(first), str(newer)}
    for repair in repairs:
        repair()
    assert ledger.check_chain(settling.chain) == 0


def test_the_hourly_check_sees_what_another_node_claimed_of_a_job_without_own_claims(settling: Settling) -> None:
    session = settling.open_session()
    settling.pass_time(10)
    assert ledger.check_chain(settling.chain) == 0
    settling.world.send(settling.world.claim(int(session.job_id or 0), 100), sender=settling.world.host)
    assert ledger.check_chain(settling.chain) == 1


@pytest.mark.parametrize("wrong_by", [timedelta(days=3), timedelta(days=-3)], ids=["ahead", "behind"])
def test_a_wrong_clock_hides_no_block_from_the_hourly_check(settling: Settling, wrong_by: timedelta) -> None:
    settling.clock.offset += wrong_by
    session = settling.open_session()
    assert ledger.check_chain(settling.chain) == 0
    settling.pass_time(10)
    settling.world.send(settling.world.claim(int(session.job_id or 0), 100), sender=settling.world.host)
    assert ledger.check_chain(settling.chain) == 1


def test_a_confirmed_claim_that_the_chain_does_not_have_is_found_hourly(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger.check_chain(settling.chain) == 0
    _, row = paid(settling)
    monkeypatch.setattr(settling.chain.marketplace, "accepted_claims", lambda _: [])
    stretch = chain_history.since(settling.chain, timedelta(0))
    (violation,) = chain_history.claims_match(settling.chain, stretch)
    assert violation.message == f"{row}: confirmed here, not on the chain"


def test_ranges_are_read_one_after_the_other(settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        paid(settling)
    monkeypatch.setattr(chain_history, "LOG_RANGE_BLOCKS", 1)
    assert found(settling) == []


def test_tokens_that_were_inherited_and_are_not_on_the_chain_are_named(settling: Settling) -> None:
    session = settling.open_session()
    change(session, tokens_inherited=100)
    (violation,) = found(settling)
    assert "0 tokens claimed" in violation.message


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's plans")
def test_a_claims_checkpoint_is_found_by_its_proof(settling: Settling) -> None:
    paid(settling)
    with CaptureQueriesContext(connection) as queries:
        assert found(settling) == []
    asked = [query["sql"] for query in queries.captured_queries if '"proof_hash" IN' in query["sql"]]
    assert len(asked) == 1
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {asked[0]}")
        plan = " | ".join(str(row[-1]) for row in cursor.fetchall())
    assert "a_proof_serves_one_checkpoint (proof_hash=?)" in plan


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
    (violation,) = chain_history.splits_are_right(settling.chain, fee_basis_points=500)
    assert violation.invariant == "I4"
    assert "fee" in violation.remedy
