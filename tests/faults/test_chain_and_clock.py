"""The pool forgets transactions, clocks jump by a day: everything drains, and every token is claimed once."""

from __future__ import annotations

import pytest

from settlement.chain import local
from tests.faults.crash_matrix import ACTS, TOKENS
from tests.faults.laboratory import Laboratory, Node

DAY = 86_400


def _open(laboratory: Laboratory, *, tokens: int) -> tuple[Node, int]:
    node = laboratory.new_node()
    _, session = laboratory.open_job(node, tokens=2 * TOKENS, max_duration=10 * DAY)
    laboratory.server.ask("generate", node=node.description, session=session, tokens=tokens)
    laboratory.clock.advance(2)
    return node, session


def _finish(laboratory: Laboratory, node: Node, session: int, *, tokens: int) -> list[str]:
    """The session ends, the worker works to the end and what was earned is withdrawn; what is wrong then."""
    server = laboratory.server
    server.ask("generate", node=node.description, session=session, tokens=tokens)
    server.ask("close", node=node.description, session=session)
    laboratory.clock.advance(2)
    failures = server.ask("work", node=node.description)["failures"]
    server.ask("withdraw", node=node.description, key="everything")
    failures += server.ask("work", node=node.description)["failures"]
    return failures + laboratory.findings(node, tokens={node.jobs[0]: TOKENS})


def test_transactions_that_the_pool_forgot_are_sent_again(laboratory: Laboratory) -> None:
    first, rest = ACTS[0], TOKENS - ACTS[0]
    node, session = _open(laboratory, tokens=first)
    url = laboratory.world.url
    local.set_automine(url, enabled=False)
    try:
        sent = next(label for label in _boundaries(laboratory) if label.startswith("after") and "eth_sendRaw" in label)
        told = {"label": sent, "occurrence": 1}
        killed_by, _ = laboratory.server.run("work", node=node.description, death=told)
        assert killed_by == 9
        dropped = local.rpc(url, "txpool_content")["pending"]
        hashes = [one["hash"] for by_nonce in dropped.values() for one in by_nonce.values()]
        assert hashes, "nothing was in the pool"
        for name in hashes:
            local.rpc(url, "anvil_dropTransaction", [name])
    finally:
        local.set_automine(url, enabled=True)
    assert _finish(laboratory, node, session, tokens=rest) == []


_seen: dict[str, int] = {}


def _boundaries(laboratory: Laboratory) -> dict[str, int]:
    """Those of one claim, passed by a node beside, on a chain that mines."""
    if not _seen:
        url = laboratory.world.url
        local.set_automine(url, enabled=True)
        node, _ = _open(laboratory, tokens=ACTS[0])
        _seen.update(laboratory.server.ask("work", node=node.description)["seen"])
        local.set_automine(url, enabled=False)
    return _seen


def test_a_host_whose_clock_jumps_back_by_a_day_for_a_while_loses_nothing(laboratory: Laboratory) -> None:
    node, session = _open(laboratory, tokens=ACTS[0])
    try:
        laboratory.clock.set(skew=-DAY)
        assert laboratory.server.ask("work", node=node.description)["failures"] == []
    finally:
        laboratory.clock.set(skew=0)
    assert _finish(laboratory, node, session, tokens=TOKENS - ACTS[0]) == []


def test_a_host_whose_clock_jumps_ahead_by_a_day_for_a_while_ends_its_sessions_and_is_paid(
    laboratory: Laboratory,
) -> None:
    """It believes that the job is about to idle out. That costs the session, and no token."""
    node, _ = _open(laboratory, tokens=ACTS[0])
    try:
        laboratory.clock.set(skew=DAY)
        assert laboratory.server.ask("work", node=node.description)["failures"] == []
    finally:
        laboratory.clock.set(skew=0)
    assert laboratory.server.ask("work", node=node.description)["failures"] == []
    assert laboratory.findings(node, tokens={node.jobs[0]: ACTS[0]}, withdrawn=False) == []


@pytest.mark.parametrize("skew", [DAY, -DAY], ids=["ahead", "behind"])
def test_a_host_whose_clock_stays_wrong_by_a_day_is_paid(laboratory: Laboratory, skew: int) -> None:
    node, session = _open(laboratory, tokens=ACTS[0])
    try:
        laboratory.clock.set(skew=skew)
        assert _finish(laboratory, node, session, tokens=TOKENS - ACTS[0]) == []
    finally:
        laboratory.clock.set(skew=0)


def test_a_chain_whose_clock_jumps_a_day_ahead_pays_what_was_generated(laboratory: Laboratory) -> None:
    node, session = _open(laboratory, tokens=ACTS[0])
    local.increase_time(laboratory.world.url, seconds=DAY)
    assert laboratory.server.ask("work", node=node.description)["failures"] == []
    assert _finish(laboratory, node, session, tokens=TOKENS - ACTS[0]) == []
