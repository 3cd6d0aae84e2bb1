"""The adapter of the mission documents' marketplace against a stand-in with its ABI, its refusals and its money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from eth_utils.crypto import keccak

from settlement.chain import local
from settlement.chain.deployment import MISSION_GENERATION
from settlement.chain.marketplace import MarketplaceJobStatus, Refusal, UnsupportedGeneration
from settlement.chain.marketplaces import marketplace_of
from tests.chain.generations import DISPUTE_WINDOW, MissionWorld, administer, mission_world, unused_proof
from tests.chain.world import ETH


@pytest.fixture(scope="module")
def deployed(anvil_url: str) -> MissionWorld:
    return mission_world(anvil_url)


@pytest.fixture
def market(deployed: MissionWorld) -> Iterator[MissionWorld]:
    before = local.snapshot(deployed.url)
    yield deployed
    local.revert(deployed.url, snapshot_id=before)


def test_a_claim_has_the_selector_of_the_mission_documents(market: MissionWorld) -> None:
    call = market.adapter.claim(job_id=163, tokens=100, proof=b"p" * 64)
    assert call.data[:4] == keccak(text="submitProofOfWork(uint256,uint256,bytes)")[:4]
    assert call.data[:4].hex() == "c8c664ee"


def test_a_job_is_read_from_the_fifteen_fields(market: MissionWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000, proof_interval=100, max_duration=7200)
    job = market.found(job_id)
    assert (job.requester, job.host) == (market.user.lower(), market.host.lower())
    assert (job.payment_token, job.deposit) == (market.usdc.address.lower(), 1_000_000)
    assert (job.price_per_token, job.price_precision, job.token_budget) == (2000, 1, 500)
    assert job.tokens_per_second == 10
    assert job.idle_timeout_seconds == 300
    assert (job.expires_at - job.started_at).total_seconds() == 7200
    assert job.status is MarketplaceJobStatus.ACTIVE
    assert (job.paid_to_host, job.paid_to_treasury, job.refunded) == (0, 0, 0)


def test_an_id_that_reads_as_active_without_a_host_is_no_job(market: MissionWorld) -> None:
    row = market.read(market.mission.session_jobs(999))
    assert (row.status, row.host) == (0, ETH)
    assert market.adapter.find_job(market.client, 999) is None
    job_id = market.open_usdc()
    found = market.adapter.find_jobs(market.client, [999, job_id, 0])
    assert [job and job.job_id for job in found] == [None, job_id, None]


def test_a_hosts_jobs_are_listed_up_to_the_index_that_the_contract_refuses(market: MissionWorld) -> None:
    ids = [market.open_usdc() for _ in range(5)]
    page = market.adapter.host_job_ids
    assert page(market.client, host=market.host, start=0, limit=50) == ids
    assert page(market.client, host=market.host, start=1, limit=2) == ids[1:3]
    assert page(market.client, host=market.host, start=5, limit=3) == []
    assert page(market.client, host=market.stranger, start=0, limit=3) == []


def test_the_terms_are_those_of_the_chain_and_the_literal_rate(market: MissionWorld) -> None:
    terms = market.adapter.terms(market.client)
    assert (terms.fee_basis_points, terms.minimum_claim) == (1000, 100)
    assert terms.dispute_window.total_seconds() == DISPUTE_WINDOW
    assert terms.treasury == market.treasury.lower()
    assert terms.tokens_per_second == 10


@pytest.mark.parametrize("coin", ["eth", "usdc"])
def test_claims_pay_nothing_and_the_completion_pays_all_to_the_last_unit(market: MissionWorld, coin: str) -> None:
    token = ETH if coin == "eth" else market.usdc.address
    price = 1_000_000_007 if coin == "eth" else 2003
    deposit = price * 700 + price // 2 if coin == "usdc" else price * 700 + 10**15
    job_id = (market.open_eth if coin == "eth" else market.open_usdc)(deposit=deposit, price=price)
    held = market.balance(market.mission.address, token)
    user = market.balance(market.user, token)
    tokens = 0
    for count in (100, 257):
        market.pass_time(60)
        proof = unused_proof()
        claimed = market.send(market.claim(job_id, count, proof=proof), sender=market.host)
        [claim] = market.adapter.accepted_claims(market.raw_logs(claimed))
        assert (claim.job_id, claim.host, claim.tokens) == (job_id, market.host.lower(), count)
        assert claim.proof_hash == market.adapter.claim_hash(proof)
        assert (claim.host_amount, claim.treasury_amount, claim.host_position) == (0, 0, None)
        tokens += count
    assert market.earned(token) == 0
    assert market.balance(market.mission.address, token) == held
    done = market.send(market.adapter.complete(job_id=job_id, reference="cid"), sender=market.host)
    gross = tokens * price
    treasury = gross * 1000 // 10_000
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.job_id, ended.status, ended.tokens) == (job_id, MarketplaceJobStatus.COMPLETED, tokens)
    assert (ended.host_amount, ended.refund, ended.settles) == (gross - treasury, deposit - gross, True)
    assert market.earned(token) == gross - treasury
    assert market.balance(market.user, token) == user + deposit - gross
    job = market.found(job_id)
    assert (job.paid_to_host, job.paid_to_treasury, job.refunded) == (gross - treasury, treasury, deposit - gross)
    kept = market.mission.accumulated_treasury_eth() if coin == "eth" else None
    kept = kept or market.mission.accumulated_treasury_tokens(market.usdc.address)
    assert market.read(kept) == treasury == market.balance(market.mission.address, token) - held + deposit


def test_a_timeout_is_one_end_and_pays_what_was_claimed(market: MissionWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000)
    market.pass_time(10)
    market.send(market.claim(job_id, 150), sender=market.host)
    last = int(market.found(job_id).last_proof_at.timestamp())
    call = market.adapter.timeout(job_id=job_id)
    assert market.refused(call, sender=market.stranger, at=last + 300) == "Session not timed out"
    ended_in = market.send_at(call, sender=market.stranger, timestamp=last + 301)
    [ended] = market.adapter.ended_jobs(market.raw_logs(ended_in))
    assert (ended.status, ended.tokens) == (MarketplaceJobStatus.TIMED_OUT, 150)
    assert (ended.host_amount, ended.refund) == (270_000, 700_000)
    assert market.found(job_id).status is MarketplaceJobStatus.TIMED_OUT
    assert market.earned(market.usdc.address) == 270_000


def test_a_job_that_nothing_was_claimed_of_is_refunded_whole(market: MissionWorld) -> None:
    job_id = market.open_eth(deposit=10**15, price=10**9)
    done = market.send(market.complete(job_id), sender=market.user)
    [ended] = market.adapter.ended_jobs(market.raw_logs(done))
    assert (ended.tokens, ended.host_amount, ended.refund) == (0, 0, 10**15)
    assert market.balance(market.mission.address, ETH) == 0


def test_every_refusal_of_a_claim_is_told_by_its_reason(market: MissionWorld) -> None:
    job_id = market.open_usdc(deposit=1_000_000, price=2000)
    start = int(market.found(job_id).started_at.timestamp())
    proof = unused_proof()
    meaning = market.adapter.meaning_of
    spent = b"s" * 32
    record = administer(str(market.deployment.proof_system), "recordVerifiedProof(bytes32)", spent)
    market.send(record, sender=market.stranger)
    cases = [
        (market.claim(job_id, 100), market.stranger, 60, "Only host can submit proof", Refusal.UNEXPLAINED),
        (market.claim(777, 100), market.host, 60, "Only host can submit proof", Refusal.UNEXPLAINED),
        (market.claim(job_id, 99), market.host, 60, "Must claim minimum tokens", Refusal.PERMANENT),
        (market.claim(job_id, 101), market.host, 5, "Excessive tokens claimed", Refusal.TOO_FAST),
        (market.claim(job_id, 501), market.host, 60, "Exceeds deposit", Refusal.PERMANENT),
        (market.claim(job_id, 100, proof=b"x" * 63), market.host, 60, "Invalid proof", Refusal.UNEXPLAINED),
        (market.claim(job_id, 100, proof=spent + spent), market.host, 60, "Invalid proof", Refusal.UNEXPLAINED),
    ]
    for call, sender, after, reason, expected in cases:
        assert market.refused(call, sender=sender, at=start + after) == reason
        assert meaning(reason) is expected
    market.send_at(market.claim(job_id, 100, proof=proof), sender=market.host, timestamp=start + 60)
    again = market.claim(job_id, 100, proof=proof)
    assert market.refused(again, sender=market.host, at=start + 120) == "Proof already submitted"
    assert meaning("Proof already submitted") is Refusal.ALREADY_CLAIMED
    market.send(market.complete(job_id), sender=market.user)
    assert market.refused(market.claim(job_id, 100), sender=market.host, at=start + 200) == "Session not active"
    assert meaning("Session not active") is Refusal.PERMANENT
    assert meaning("something new") is Refusal.UNEXPLAINED


def test_a_marketplace_without_a_proof_system_takes_no_claim_yet(market: MissionWorld) -> None:
    nowhere = administer(market.mission.address, "setProofSystem(address)", ETH)
    market.send(nowhere, sender=market.treasury)
    job_id = market.open_usdc()
    reason = market.refused(market.claim(job_id, 100), sender=market.host, at=market.now() + 60)
    assert reason == "Proof system not set"
    assert market.adapter.meaning_of(reason) is Refusal.UNEXPLAINED


def test_the_hosts_window_runs_from_the_start_of_the_job(market: MissionWorld) -> None:
    job_id = market.open_usdc()
    start = int(market.found(job_id).started_at.timestamp())
    call = market.complete(job_id)
    assert market.refused(call, sender=market.stranger) == "Unauthorized"
    reason = market.refused(call, sender=market.host, at=start + DISPUTE_WINDOW - 1)
    assert reason == "Must wait dispute window"
    assert market.adapter.meaning_of(reason) is Refusal.DISPUTE_WINDOW
    market.send_at(call, sender=market.host, timestamp=start + DISPUTE_WINDOW)
    assert market.found(job_id).status is MarketplaceJobStatus.COMPLETED
    assert market.refused(call, sender=market.host) == "Session not active"


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"deposit": 799_999}, "Insufficient deposit"),
        ({"price": 0}, "Invalid price"),
        ({"max_duration": 0}, "Invalid duration"),
        ({"max_duration": 365 * 86400 + 1}, "Invalid duration"),
        ({"proof_interval": 0}, "Invalid proof interval"),
        ({"host": ETH}, "Invalid host"),
        ({"proof_interval": 99}, "Proof interval too small"),
        ({"proof_interval": 501}, "Deposit too small for proof interval"),
        ({"token": "0x" + "12" * 20}, "Token not accepted"),
    ],
)
def test_a_job_that_the_marketplace_does_not_open(market: MissionWorld, terms: dict, reason: str) -> None:
    assert market.refused(market.create_usdc(**terms), sender=market.user) == reason


def test_earnings_are_withdrawn_and_seen(market: MissionWorld) -> None:
    token = market.usdc.address
    job_id = market.open_usdc(deposit=1_000_000, price=2000)
    market.pass_time(60)
    market.send(market.claim(job_id, 200), sender=market.host)
    market.send(market.complete(job_id), sender=market.user)
    part = market.send(market.adapter.withdraw(token=token, amount=60_000), sender=market.host)
    [withdrawal] = market.adapter.withdrawals(market.raw_logs(part))
    assert (withdrawal.host, withdrawal.token) == (market.host.lower(), token.lower())
    assert (withdrawal.amount, withdrawal.remaining) == (60_000, 300_000)
    rest = market.send(market.adapter.withdraw_many([ETH, token]), sender=market.host)
    assert [found.amount for found in market.adapter.withdrawals(market.raw_logs(rest))] == [300_000]
    assert market.balance(market.host, token) == 360_000
    assert market.earned(token) == 0


def test_without_a_known_earnings_contract_only_withdrawing_is_refused(market: MissionWorld) -> None:
    adapter = marketplace_of(replace(market.deployment, host_earnings=None, proof_system=None))
    assert adapter.addresses == (market.mission.address.lower(),)
    assert adapter.terms(market.client).minimum_claim == 100
    with pytest.raises(UnsupportedGeneration, match="CONTRACT_HOST_EARNINGS"):
        adapter.withdraw(token=ETH, amount=None)


def test_the_functions_that_the_node_needs_are_in_the_code(market: MissionWorld) -> None:
    code = market.client.code(market.mission.address)
    needed = market.adapter.needed_selectors()
    assert [name for name, selector in needed.items() if selector not in code] == []
    assert "submitProofOfWork(uint256,uint256,bytes)" in needed
    assert market.deployment.generation == MISSION_GENERATION
