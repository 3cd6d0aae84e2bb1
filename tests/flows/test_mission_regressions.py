"""The bugs and mistakes that stopped real hosts from being paid, one test each."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from eth_utils.crypto import keccak

from fabstir_site.version import git_revision
from jobs.models import Session
from settlement import preflight
from settlement.chain.bindings import JobMarketplace
from settlement.chain.contracts import abi_hash, load_artifact
from settlement.chain.deployment import DEPLOYMENTS_DIR, load_deployment
from settlement.host_chain import host_chain
from settlement.models import Attempt, Checkpoint, CheckpointState, Transaction
from settlement.proofs import mock, registry
from tests.flows.flow import PATHS, Flow, prompt_body

PROOF_SYSTEM_OF_THE_MISSION = "0x2ACcc60893872A499700908889B38C5420CBcFD1"
MARKETPLACE_OF_THE_MISSION = "0x1273E6358aa52Bb5B160c34Bf2e617B745e4A944"


# The four bugs that kept checkpoints from being submitted.


def test_bug_1_the_non_streaming_path_tracks_its_tokens(flow: Flow):
    job_id = flow.world.open_usdc()
    body = {"model": "tiny-vicuna-1b", "prompt": "Count to 100", "max_tokens": 110, "temperature": 0.7}
    flow.post({**body, "stream": False, "session_id": str(job_id)})
    assert flow.tracked(job_id) == 110
    flow.drive()
    assert flow.world.job(job_id).tokens_used == 110


@pytest.mark.parametrize("path", PATHS)
def test_bug_2_counters_outlive_the_reply_and_reach_the_threshold(flow: Flow, path: str):
    job_id = flow.world.open_usdc()
    for _ in range(3):
        assert flow.ask(path, tokens=33, job_id=job_id)["tokens_used"] == 33
        flow.step()
    assert flow.tracked(job_id) == 99
    assert flow.claims_of(job_id) == []
    flow.ask(path, tokens=2, job_id=job_id)
    flow.drive()
    assert flow.claims_of(job_id) == [101]


def test_bug_3_claims_go_to_the_marketplace_and_never_to_the_proof_system(flow: Flow):
    _claimed(flow, 150)
    targets = {row.to for row in Transaction.objects.all()}
    assert targets == {flow.world.deployment.job_marketplace.lower()}
    assert str(flow.world.deployment.proof_system).lower() not in targets


def test_bug_3_the_shipped_deployment_names_the_marketplace_of_the_mission():
    shipped = load_deployment(DEPLOYMENTS_DIR / "84532.json")
    assert shipped.job_marketplace == MARKETPLACE_OF_THE_MISSION
    assert shipped.job_marketplace != PROOF_SYSTEM_OF_THE_MISSION


def test_bug_4_the_function_called_is_in_the_abi_and_in_the_code_on_the_chain(flow: Flow):
    _claimed(flow, 150)
    [row] = Transaction.objects.filter(kind="claim")
    names = {entry["name"] for entry in load_artifact("JobMarketplace").abi if entry["type"] == "function"}
    assert "submitProofOfWork" in names
    assert "submitCheckpoint" not in names
    selector = keccak(text="submitProofOfWork(uint256,uint256,bytes)")[:4]
    assert bytes.fromhex(row.data[2:10]) == selector == JobMarketplace.FUNCTIONS["submitProofOfWork"].selector
    assert selector in flow.chain.client.code(row.to)
    assert Attempt.objects.get(transaction=row).state == "mined"


# The critical mistakes of the deployment guide.


def test_mistake_1_assumed_function_names_are_checked_against_the_deployed_code(flow: Flow):
    assert _check("selectors").passed
    for name in flow.chain.marketplace.needed_selectors():
        assert "submitCheckpoint" not in name


def test_mistake_2_a_running_node_says_which_build_chain_and_contracts_it_has(flow: Flow):
    answer = flow.post(b"", path="/v1/version", method="GET").json
    assert answer["git_revision"] == git_revision()
    assert answer["build"].endswith(git_revision()[:12])
    assert answer["chain_id"] == 31337
    assert answer["contracts"]["job_marketplace"] == flow.world.deployment.job_marketplace
    assert answer["abi_sha256"] == abi_hash()


def test_mistake_3_the_build_named_is_that_of_the_files_on_disk():
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert git_revision().removesuffix("-dirty") == (commit or "unknown")


def test_mistake_5_a_proof_system_configured_as_marketplace_is_named_before_the_first_job(flow: Flow, settings):
    wrong = str(flow.world.deployment.proof_system)
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, contract_overrides={"JobMarketplace": wrong})
    host_chain.cache_clear()
    check = _check("selectors")
    assert not check.passed
    assert wrong in check.found
    assert "submitProofOfWork(uint256,uint256,bytes)" in check.found
    assert "CONTRACT_JOB_MARKETPLACE" in check.remedy


def test_an_address_without_a_contract_is_named_before_the_first_job(flow: Flow, settings):
    nowhere = flow.world.stranger
    settings.ENVIRONMENT = replace(settings.ENVIRONMENT, contract_overrides={"JobMarketplace": nowhere})
    host_chain.cache_clear()
    check = _check("contract code")
    assert not check.passed
    assert nowhere in check.found


# The prover that was not there.


def test_without_an_accepted_prover_tokens_wait_and_are_claimed_once_there_is_one(flow: Flow):
    world = flow.world
    world.send(world.proofs.unlist_verifier(mock.SELECTOR), sender=world.owner)
    try:
        job_id = world.open_usdc()
        flow.post(prompt_body(150, job_id=job_id))
        flow.drive()
        checkpoint = Checkpoint.objects.get()
        assert checkpoint.state == CheckpointState.RETRY_AT
        assert "accepts none of this node's provers" in checkpoint.reason
        assert not _check("prover").passed
        assert world.job(job_id).tokens_used == 0
        # Serving goes on meanwhile, and nothing is retried for each token.
        flow.post(prompt_body(60, job_id=job_id))
        assert Checkpoint.objects.get().retries == checkpoint.retries
        assert flow.tracked(job_id) == 210
    finally:
        world.send(world.proofs.list_verifier(world.mock.address), sender=world.owner)
    flow.chain_world.clock.advance(700)
    flow.drive()
    assert Checkpoint.objects.get(pk=checkpoint.pk).state == CheckpointState.SETTLED
    assert world.job(job_id).tokens_used == 150


def test_a_prover_that_fails_leaves_the_checkpoint_claimable(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    class Missing(mock.MockProver):
        def prove(self, witness):
            raise registry.ProverUnavailable("No such file or directory (os error 2)")

    monkeypatch.setattr(registry, "PROVERS", (Missing(),))
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(150, job_id=job_id))
    flow.drive()
    checkpoint = Checkpoint.objects.get()
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "os error 2" in checkpoint.reason
    monkeypatch.undo()


# What a claim says.


def test_claims_are_deltas_and_never_running_totals(flow: Flow):
    job_id = flow.world.open_usdc(deposit=10_000_000)
    for tokens in (110, 120, 130):
        flow.post(prompt_body(tokens, job_id=job_id))
        flow.drive()
    assert flow.claims_of(job_id) == [110, 120, 130]
    assert flow.world.job(job_id).tokens_used == 360
    assert flow.session(job_id).tokens_claimed == 360


def test_a_last_claim_below_the_minimum_is_not_padded(flow: Flow):
    job_id = flow.world.open_usdc(deposit=10_000_000, price=2000)
    flow.post(prompt_body(101, job_id=job_id))
    flow.drive()
    flow.post(prompt_body(3, job_id=job_id))
    flow.drive()
    assert flow.claims_of(job_id) == [101]
    flow.chain_world.clock.advance(1000)
    flow.close_due_sessions()
    flow.drive()
    assert flow.claims_of(job_id) == [101, 3]
    job = flow.world.job(job_id)
    assert (job.tokens_used, job.withdrawn_by_host) == (104, 104 * 2000 * 9 // 10)
    assert Session.objects.get().state == "completed"


def test_a_session_without_tokens_is_completed_without_a_claim(flow: Flow):
    job_id = flow.world.open_usdc(deposit=1_000_000)

    async def play() -> None:
        async with flow.socket() as socket:
            await socket.ask({"type": "session_init", "session_id": str(job_id)})
            await socket.ask({"type": "session_end"})

    flow.run(play())
    flow.drive()
    assert flow.claims_of(job_id) == []
    assert flow.world.job(job_id).refunded_to_user == 1_000_000


def _claimed(flow: Flow, tokens: int) -> int:
    job_id = flow.world.open_usdc()
    flow.post(prompt_body(tokens, job_id=job_id))
    flow.drive()
    assert flow.world.job(job_id).tokens_used == tokens
    return job_id


def _check(name: str) -> preflight.Check:
    return preflight._run(name, dict(preflight._CHECKS)[name])
