"""Two nodes of one chain, one of them some blocks behind: nothing is concluded from what the two say together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from settlement import claims, following, indexer
from settlement.chain import local
from settlement.chain.client import ChainClient, ChainUnavailable
from settlement.models import (
    ChainCursor,
    Checkpoint,
    CheckpointState,
    Earning,
    EarningKind,
    Transaction,
    TransactionState,
)
from tests.fakes.scripted_rpc import CHAIN_ID, NodeError, ScriptedRpc
from tests.settlement.conftest import Settling

pytestmark = pytest.mark.django_db

BEHIND = 5
_THROTTLED = NodeError("too many requests", code=429)


def _mirror(peer: ScriptedRpc, url: str, *, behind: int) -> None:
    """Let a scripted node show the chain of an anvil, the newest blocks apart; logs up to what it has."""

    def head() -> int:
        return int(local.rpc(url, "eth_blockNumber", []), 16) - behind

    def block(params: list[Any]) -> Any:
        number = head() if params[0] == "latest" else int(params[0], 16)
        return local.rpc(url, "eth_getBlockByNumber", [hex(number), False]) if number <= head() else None

    def logs(params: list[Any]) -> Any:
        start, end = int(params[0]["fromBlock"], 16), min(int(params[0]["toBlock"], 16), head())
        return local.rpc(url, "eth_getLogs", [params[0] | {"toBlock": hex(end)}]) if start <= end else []

    peer.on("eth_blockNumber", lambda params: hex(head()))
    peer.on("eth_getBlockByNumber", block)
    peer.on("eth_getLogs", logs)
    for method in ("eth_call", "eth_getTransactionReceipt"):
        peer.on(method, lambda params, method=method: local.rpc(url, method, params))


@dataclass
class Pair:
    """A settling host whose client asks ``ahead`` first and then ``behind``."""

    host: Settling
    ahead: ScriptedRpc

    def throttle(self, method: str) -> None:
        self.ahead.on(method, _THROTTLED)

    def recover(self) -> None:
        _mirror(self.ahead, self.host.world.url, behind=0)


@pytest.fixture
def pair(settling: Settling) -> Iterator[Pair]:
    local.mine(settling.world.url, blocks=BEHIND)
    with ScriptedRpc() as ahead, ScriptedRpc() as behind:
        _mirror(ahead, settling.world.url, behind=0)
        _mirror(behind, settling.world.url, behind=BEHIND)
        client = ChainClient((ahead.url, behind.url), chain_id=CHAIN_ID)
        yield Pair(replace(settling, chain=replace(settling.chain, client=client)), ahead)


def _complete_a_job(host: Settling) -> int:
    session = host.open_session()
    host.world.send(host.world.complete(session.job_id), sender=host.world.user)
    return session.deposit


def test_the_cursor_passes_no_block_that_the_node_with_the_logs_does_not_have(pair: Pair) -> None:
    refund = _complete_a_job(pair.host)
    head = pair.host.chain.client.head().number
    pair.throttle("eth_getLogs")
    assert indexer.index_events(pair.host.chain) == head - BEHIND
    assert ChainCursor.objects.get().block_number == head - BEHIND
    assert not Earning.objects.exists()
    pair.recover()
    assert indexer.index_events(pair.host.chain) == head
    assert [row.amount for row in Earning.objects.filter(kind=EarningKind.REFUND)] == [refund]


def test_events_are_not_called_applied_again_where_the_node_lacks_their_blocks(pair: Pair) -> None:
    refund = _complete_a_job(pair.host)
    head = pair.host.chain.client.head().number
    pair.throttle("eth_getLogs")
    with pytest.raises(ChainUnavailable, match="behind"):
        indexer.apply_from(pair.host.chain, start=head - 2)
    pair.recover()
    indexer.apply_from(pair.host.chain, start=head - 2)
    assert [row.amount for row in Earning.objects.filter(kind=EarningKind.REFUND)] == [refund]


def test_a_node_behind_the_cursor_is_no_reorg(pair: Pair) -> None:
    _complete_a_job(pair.host)
    head = pair.host.index()
    pair.throttle("eth_getBlockByNumber")
    with pytest.raises(ChainUnavailable, match=f"does not have block {head}"):
        indexer.index_events(pair.host.chain)
    assert ChainCursor.objects.get().block_number == head
    assert not Earning.objects.filter(reverses__isnull=False).exists()
    pair.recover()
    local.mine(pair.host.world.url, blocks=1)
    assert indexer.index_events(pair.host.chain) == head + 1


def _claimed_unknown_to_this_node(host: Settling, *, broadcast_by: Settling) -> Checkpoint:
    """A claim that the chain accepted from bytes that are lost, and whose replay it refused."""
    session = host.open_session()
    host.generate(session, 150)
    host.pass_time(2)
    host.prepare_claims()
    checkpoint = session.checkpoints.get()
    host.world.send(claims.claim_call(host.chain, checkpoint), sender=host.world.host)
    host.pass_time(2)
    broadcast_by.broadcast()
    assert (Transaction.objects.get().state, Transaction.objects.get().revert) == (
        TransactionState.FAILED,
        "ProofAlreadyUsed",
    )
    return checkpoint


def test_an_accepted_claim_is_not_given_up_on_the_word_of_a_node_that_is_behind(pair: Pair, settling: Settling) -> None:
    checkpoint = _claimed_unknown_to_this_node(pair.host, broadcast_by=settling)
    pair.throttle("eth_getLogs")
    following.follow_transactions(pair.host.chain)
    checkpoint.refresh_from_db()
    assert checkpoint.state == CheckpointState.RETRY_AT
    assert "is behind" in checkpoint.reason
    pair.recover()
    settling.pass_time(30)
    settling.settle()
    assert settling.states(checkpoint.session) == [CheckpointState.SETTLED]
    assert settling.earned(checkpoint.session, EarningKind.HOST) == [270_000]


def test_nor_where_only_the_indexer_has_seen_the_newer_blocks(pair: Pair, settling: Settling) -> None:
    checkpoint = _claimed_unknown_to_this_node(pair.host, broadcast_by=settling)
    settling.index()
    pair.throttle("eth_getBlockByNumber")
    following.follow_transactions(pair.host.chain)
    checkpoint.refresh_from_db()
    assert checkpoint.state == CheckpointState.RETRY_AT
