"""A worker killed at its commits and RPCs: a sample of the matrix that ``make faults`` plays in full."""

from __future__ import annotations

import random

from eth_account import Account

from settlement.chain import local
from tests.faults.boundaries import Death
from tests.faults.crash_matrix import ACTS, TOKENS, Life, Plan, die_at, matrix, record
from tests.faults.laboratory import Laboratory

SAMPLE = 16


def _sample(boundaries: dict[str, int]) -> list[str]:
    """Every RPC that sends and the commits around it, and some of the others."""
    sends = [label for label in boundaries if "eth_sendRawTransaction" in label]
    others = sorted(set(boundaries) - set(sends))
    return sends + random.Random(len(others)).sample(others, SAMPLE - len(sends))


def test_wherever_the_worker_is_killed_every_token_is_claimed_once(laboratory: Laboratory) -> None:
    outcomes = matrix(laboratory, repeats=1, only=_sample)
    assert len(outcomes) == SAMPLE
    assert {one.plan.reproduce: one.findings for one in outcomes if one.findings} == {}
    assert all(outcome.deaths == 1 for outcome in outcomes)


def test_a_worker_that_dies_again_while_it_recovers_loses_nothing(laboratory: Laboratory) -> None:
    boundaries = record(laboratory)
    chance = random.Random(2)
    for label in chance.sample(sorted(boundaries), 4):
        plan = Plan(label=label, occurrence=chance.randint(1, boundaries[label]), seed=chance.choice((1, 3)))
        assert die_at(laboratory, plan).findings == (), plan.reproduce


def test_the_boundaries_hold_every_commit_and_rpc_of_the_pipeline(laboratory: Laboratory) -> None:
    boundaries = record(laboratory)
    befores = {label.removeprefix("before ") for label in boundaries if label.startswith("before ")}
    afters = {label.removeprefix("after ") for label in boundaries if label.startswith("after ")}
    assert befores == afters
    assert not any("elsewhere" in label for label in boundaries)
    for step in (
        "seal",
        "prove",
        "submit",
        "broadcast",
        "receipt",
        "index",
        "finish",
        "withdraw",
        "sendRawTransaction",
    ):
        assert any(step in label for label in boundaries), f"no boundary in {step}"


def test_a_transaction_that_the_books_do_not_know_is_found(laboratory: Laboratory) -> None:
    """The matrix is worth what its check is worth."""
    node = laboratory.new_node()
    Life(laboratory, node, []).play()
    [job_id] = node.jobs
    assert laboratory.findings(node, tokens={job_id: TOKENS}) == []
    assert laboratory.findings(node, tokens={job_id: TOKENS + ACTS[0]}) != []
    url, sender = laboratory.world.url, node.account.address
    local.rpc(url, "anvil_impersonateAccount", [sender])
    local.rpc(url, "eth_sendTransaction", [{"from": sender, "to": Account.create().address, "value": "0x1"}])
    local.rpc(url, "anvil_stopImpersonatingAccount", [sender])
    found = laboratory.findings(node, tokens={job_id: TOKENS})
    assert any("unknown to the books" in one for one in found), found


def test_an_interrupted_life_is_found(laboratory: Laboratory) -> None:
    node = laboratory.new_node()
    _, session = laboratory.open_job(node, tokens=2 * TOKENS)
    server = laboratory.server
    server.ask("generate", node=node.description, session=session, tokens=ACTS[0])
    laboratory.clock.advance(2)
    death = Death(label="", occurrence=40)
    told = {"label": death.label, "occurrence": death.occurrence}
    killed_by, _ = server.run("work", node=node.description, death=told)
    assert killed_by == 9
    found = laboratory.findings(node, tokens={node.jobs[0]: ACTS[0]})
    assert any("not drained" in one for one in found), found
