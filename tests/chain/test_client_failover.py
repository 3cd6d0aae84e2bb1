"""Several nodes: who is asked, who rests, and who is never believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from settlement.chain import local
from settlement.chain.client import ChainClient, ChainUnavailable, NodeRefused
from settlement.chain.endpoints import Standing
from tests.chain.unruly_peer import CHAIN_ID, Hold, Reply, UnrulyPeer

ADDRESS = "0x" + "bB" * 20
DOWN = Reply(b"down", status=503)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def peers() -> Iterator[list[UnrulyPeer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(UnrulyPeer()) for _ in range(2)]


@pytest.fixture
def client(peers: list[UnrulyPeer], clock: Clock) -> ChainClient:
    return ChainClient([peer.url for peer in peers], chain_id=CHAIN_ID, timeout_seconds=0.3, clock=clock)


def _standings(client: ChainClient) -> list[Standing]:
    return [state.standing for state in client.endpoints()]


def _break(peer: UnrulyPeer, reply: Any = DOWN) -> None:
    peer.behave = lambda request: reply


def test_the_first_node_that_works_is_asked(peers: list[UnrulyPeer], client: ChainClient) -> None:
    assert client.balance(ADDRESS) == 1
    assert (peers[0].work(), peers[1].methods()) == (["eth_getBalance"], [])
    _break(peers[0])
    assert client.balance(ADDRESS) == 1
    assert peers[1].work() == ["eth_getBalance"]


def test_a_node_that_keeps_failing_rests_and_comes_back_with_one_probe(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock
) -> None:
    _break(peers[0])
    for _ in range(5):
        client.balance(ADDRESS)
    assert len(peers[0].requests) == 3
    assert _standings(client) == [Standing.RESTING, Standing.OK]
    assert client.endpoints()[0].resting_seconds == 1
    clock.now += 1
    client.balance(ADDRESS)
    client.balance(ADDRESS)
    assert len(peers[0].requests) == 4
    assert client.endpoints()[0].resting_seconds == 2
    peers[0].behave = peers[0].obey
    clock.now += 2
    client.balance(ADDRESS)
    assert _standings(client)[0] is Standing.OK
    assert peers[0].methods()[-3:] == ["eth_chainId", "eth_blockNumber", "eth_getBalance"]


def test_a_rest_grows_up_to_a_minute(peers: list[UnrulyPeer], client: ChainClient, clock: Clock) -> None:
    _break(peers[0])
    rests = []
    for _ in range(12):
        client.balance(ADDRESS)
        rests.append(client.endpoints()[0].resting_seconds)
        clock.now += rests[-1]
    assert rests == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


@pytest.mark.parametrize("header", ["7", "soon"])
def test_a_node_that_asks_for_fewer_requests_is_left_alone_as_long_as_it_says(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock, header: str
) -> None:
    _break(peers[0], Reply(status=429, headers={"Retry-After": header}))
    client.balance(ADDRESS)
    assert client.endpoints()[0].resting_seconds == (7 if header == "7" else 0)
    peers[0].behave = peers[0].obey
    client.balance(ADDRESS)
    assert (peers[0].work() == []) == (header == "7")
    clock.now += 7
    client.balance(ADDRESS)
    assert peers[0].work()[-1] == "eth_getBalance"


def test_a_rate_limit_in_json_sends_the_question_to_the_next_node(peers: list[UnrulyPeer], client: ChainClient) -> None:
    limit = {"error": {"code": -32005, "message": "daily request rate limited"}}
    peers[0].results |= {"eth_getBalance": limit, "eth_getBlockByNumber": {"error": {"code": 429, "message": "wait"}}}
    assert client.balance(ADDRESS) == 1
    assert [block and block.number for block in client.blocks([1, 2])] == [1, 2]
    peers[1].results["eth_getBalance"] = limit
    with pytest.raises(NodeRefused, match="rate limited"):
        client.balance(ADDRESS)


def test_a_node_of_another_chain_is_asked_for_its_chain_and_nothing_else(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock
) -> None:
    peers[0].chain_id = 5
    client.send_raw(b"\x01")
    client.balance(ADDRESS)
    assert set(peers[0].methods()) == {"eth_chainId"}
    assert peers[1].work() == ["eth_sendRawTransaction", "eth_getBalance"]
    assert client.endpoints()[0].reason == f"is a node of another chain (chain 5, not CHAIN_ID {CHAIN_ID})"
    _break(peers[1])
    with pytest.raises(ChainUnavailable, match="RPC node 1 is a node of another chain"):
        client.send_raw(b"\x01")
    assert set(peers[0].methods()) == {"eth_chainId"}
    peers[0].chain_id = CHAIN_ID
    clock.now += 60
    client.send_raw(b"\x01")
    assert peers[0].work() == ["eth_sendRawTransaction"]


def test_a_node_that_comes_back_as_another_chain_is_found_out(peers: list[UnrulyPeer], client: ChainClient) -> None:
    client.balance(ADDRESS)
    _break(peers[0], Reply(cut=True))
    client.balance(ADDRESS)
    peers[0].behave, peers[0].chain_id = peers[0].obey, 5
    before = len(peers[0].work())
    client.balance(ADDRESS)
    assert len(peers[0].work()) == before
    assert _standings(client) == [Standing.WRONG_CHAIN, Standing.OK]


@pytest.mark.parametrize("failure", [DOWN, Hold, Reply(cut=True), Reply(b"{")])
def test_a_send_without_an_answer_goes_to_the_next_node_with_the_same_bytes(
    peers: list[UnrulyPeer], client: ChainClient, failure: Any
) -> None:
    client.balance(ADDRESS)
    _break(peers[0], failure)
    client.send_raw(b"\x01\x02")
    for peer in peers:
        sent = [request["params"] for request in peer.requests if request["method"] == "eth_sendRawTransaction"]
        assert sent == [["0x0102"]]


def test_a_node_that_refuses_a_transaction_is_believed(peers: list[UnrulyPeer], client: ChainClient) -> None:
    peers[0].results["eth_sendRawTransaction"] = {"error": {"code": -32000, "message": "nonce too low"}}
    with pytest.raises(NodeRefused, match="nonce too low"):
        client.send_raw(b"\x01")
    assert peers[1].methods() == []


def test_a_node_behind_what_was_seen_is_not_read_but_may_hand_on_bytes(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock
) -> None:
    peers[1].head = 79
    assert client.head().number == 100
    _break(peers[0])
    with pytest.raises(ChainUnavailable, match=r"RPC node 2 is behind the chain \(block 79, 100 was seen\)"):
        client.balance(ADDRESS)
    client.send_raw(b"\x01")
    assert peers[1].work() == ["eth_sendRawTransaction"]
    assert _standings(client)[1] is Standing.STALE
    peers[1].head = 80
    clock.now += 5
    assert client.balance(ADDRESS) == 1


def test_a_node_that_falls_behind_is_passed_over_at_the_next_look_at_its_head(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock
) -> None:
    client.balance(ADDRESS)
    peers[0].head, peers[1].head = 100, 200
    _break(peers[0])
    assert client.head().number == 200
    peers[0].behave = peers[0].obey
    assert client.head().number == 200
    assert _standings(client) == [Standing.STALE, Standing.OK]


def test_a_chain_that_went_back_is_believed_once_every_node_says_so(
    peers: list[UnrulyPeer], client: ChainClient, clock: Clock
) -> None:
    assert client.head().number == 100
    peers[0].head = peers[1].head = 3
    assert client.head().number == 3
    clock.now += 5
    assert client.head().number == 3
    assert _standings(client) == [Standing.OK, Standing.OK]


def test_the_only_node_is_right_about_its_head(clock: Clock) -> None:
    with UnrulyPeer() as peer:
        client = ChainClient([peer.url], chain_id=CHAIN_ID, clock=clock)
        assert client.head().number == 100
        peer.head = 3
        assert client.head().number == 3


def test_the_only_node_is_asked_again_at_once_when_asking_costs_no_wait(clock: Clock) -> None:
    with UnrulyPeer() as peer:
        client = ChainClient([peer.url], chain_id=CHAIN_ID, timeout_seconds=0.2, clock=clock)
        _break(peer)
        for _ in range(5):
            with pytest.raises(ChainUnavailable):
                client.head()
        peer.behave = peer.obey
        assert client.head().number == 100
        _break(peer, Hold)
        for _ in range(3):
            with pytest.raises(ChainUnavailable):
                client.head()
        asked = len(peer.requests)
        with pytest.raises(ChainUnavailable, match="did not answer in time, asked again in 1 s"):
            client.head()
        assert len(peer.requests) == asked


def test_a_receipt_and_its_block_are_told_by_one_node(peers: list[UnrulyPeer], client: ChainClient) -> None:
    """Node 1 gives the receipt and then breaks off: node 2 is asked for both, though its block differs."""

    def mined(number: int) -> dict[str, Any]:
        fields = {"status": "0x1", "gasUsed": "0x1", "logs": [], "transactionHash": "0x" + "11" * 32}
        return fields | {"blockNumber": hex(number), "blockHash": "0x" + f"{number:064x}"}

    peers[0].results["eth_getTransactionReceipt"] = mined(5)
    peers[1].results["eth_getTransactionReceipt"] = mined(6)
    first = peers[0]
    first.behave = lambda request: DOWN if "eth_getBlockByNumber" in str(request) else first.obey(request)
    (inclusion,) = client.inclusions(["0x" + "11" * 32])
    assert inclusion is not None
    assert (inclusion.receipt.block_number, inclusion.block.number) == (6, 6)
    assert inclusion.is_canonical
    assert peers[1].work() == ["eth_getTransactionReceipt", "eth_getBlockByNumber"]


def test_no_state_of_an_endpoint_names_its_url(peers: list[UnrulyPeer], client: ChainClient) -> None:
    _break(peers[0])
    client.balance(ADDRESS)
    for shown in (repr(client.endpoints()), repr(client), repr(client._endpoints)):
        assert "127.0.0.1" not in shown
        assert "tOkEn" not in shown
    assert [state.name for state in client.endpoints()] == ["RPC node 1", "RPC node 2"]


def test_real_nodes_of_two_chains_and_one_that_is_killed(anvil_binary: Path) -> None:
    with (
        local.TemporaryAnvil(binary=anvil_binary, chain_id=5) as wrong,
        local.TemporaryAnvil(binary=anvil_binary) as right,
    ):
        with local.TemporaryAnvil(binary=anvil_binary) as doomed:
            client = ChainClient([wrong.url, doomed.url, right.url], chain_id=CHAIN_ID)
            assert [block and block.number for block in client.blocks([0, 1])] == [0, None]
            assert _standings(client) == [Standing.WRONG_CHAIN, Standing.OK, Standing.UNTRIED]
            assert client.reported_chain_id() == 5
        assert client.transaction_count(Account.create().address) == 0
        assert _standings(client)[1:] == [Standing.FAILING, Standing.OK]
