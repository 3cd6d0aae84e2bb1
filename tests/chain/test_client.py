"""One node: batches come back in order, and whatever it does wrong has a name that holds no URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from settlement.chain import transport
from settlement.chain.bindings import JobMarketplace
from settlement.chain.client import CallReverted, ChainClient, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from tests.chain.unruly_peer import CHAIN_ID, Hold, Reply, UnrulyPeer

MARKETPLACE = JobMarketplace("0x" + "Aa" * 20)
SENDER = "0x" + "bB" * 20
DEAD_URL = "http://user:pa55word@127.0.0.1:9/v3/tOkEn0fTheProvider99?apikey=k3yInTheQuery"


@pytest.fixture
def peer() -> Iterator[UnrulyPeer]:
    with UnrulyPeer() as running:
        yield running


@pytest.fixture
def client(peer: UnrulyPeer) -> ChainClient:
    return ChainClient([peer.url], chain_id=CHAIN_ID, timeout_seconds=1)


def _numbered(params: list[Any]) -> dict[str, Any]:
    number = int(params[0], 16)
    return {"number": hex(number), "hash": "0x" + f"{number:064x}", "timestamp": "0x1"}


def _backwards(peer: UnrulyPeer) -> None:
    peer.behave = lambda request: (peer.obey(request)[::-1]) if isinstance(request, list) else peer.obey(request)


def test_a_batch_is_one_request_and_its_answers_are_put_in_order(peer: UnrulyPeer, client: ChainClient) -> None:
    _backwards(peer)
    numbers = list(range(7, 90))
    assert [block and block.number for block in client.blocks(numbers)] == numbers
    assert [len(request) for request in peer.requests if isinstance(request, list)] == [50, 33]
    assert len(peer.connections) == 1


def _drop_one(answers: list[Any]) -> list[Any]:
    return answers[:-1]


def _repeat_one(answers: list[Any]) -> list[Any]:
    return [*answers[:-1], answers[0]]


def _foreign_id(answers: list[Any]) -> list[Any]:
    return [*answers[:-1], {**answers[-1], "id": 10**9}]


def _not_a_list(answers: list[Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "batches are not supported"}}


def _extra_one(answers: list[Any]) -> list[Any]:
    return [*answers, answers[0]]


def _nothing(answers: list[Any]) -> Reply:
    return Reply(cut=True)


def _bad_request(answers: list[Any]) -> Reply:
    return Reply(b"no batches", status=400)


@pytest.mark.parametrize(
    "spoil", [_drop_one, _repeat_one, _foreign_id, _not_a_list, _extra_one, _nothing, _bad_request]
)
def test_a_node_without_proper_batches_is_asked_one_by_one_from_then_on(
    peer: UnrulyPeer, client: ChainClient, spoil: Any
) -> None:
    peer.behave = lambda request: spoil(peer.obey(request)) if isinstance(request, list) else peer.obey(request)
    for _ in range(2):
        assert [block and block.number for block in client.blocks([3, 4, 5])] == [3, 4, 5]
    assert [len(request) for request in peer.requests if isinstance(request, list)] == [3]
    assert peer.methods().count("eth_getBlockByNumber") == 9


def test_estimates_tell_gas_reverts_and_refusals_apart(peer: UnrulyPeer, client: ChainClient) -> None:
    too_few = keccak(text="Error(string)")[:4] + encode(["string"], ["Only host"])
    answers = iter(
        [
            "0x5208",
            {"error": {"code": 3, "message": "execution reverted", "data": "0x" + too_few.hex()}},
            {"error": {"code": -32000, "message": "insufficient funds for gas"}},
            {"error": {"code": -32000, "message": "execution reverted: Only host"}},
        ]
    )
    peer.results["eth_estimateGas"] = lambda params: next(answers)
    call = MARKETPLACE.complete_session_job(job_id=1, conversation_cid="cid")
    gas, reverted, refused, worded = client.estimates([call] * 4, sender=SENDER)
    assert gas == 21_000
    assert isinstance(reverted, CallReverted)
    assert isinstance(worded, CallReverted)
    assert reverted.revert.name == worded.revert.name == "Only host"
    assert isinstance(refused, NodeRefused)
    assert refused.message == "insufficient funds for gas"


def test_reads_in_a_batch_are_values_or_say_why_not(peer: UnrulyPeer, client: ChainClient) -> None:
    answers = iter(["0x" + f"{7:064x}", "0x", {"error": {"code": -32601, "message": "unknown"}}])
    peer.results["eth_call"] = lambda params: next(answers)
    found = client.calls([MARKETPLACE.next_job_id()] * 3)
    assert found[0] == 7
    assert [type(each) for each in found[1:]] == [CodecError, NodeRefused]


def test_sends_of_a_batch_are_taken_or_refused_one_by_one(peer: UnrulyPeer, client: ChainClient) -> None:
    refusal = {"error": {"code": -32000, "message": "nonce too low"}}
    peer.results["eth_sendRawTransaction"] = lambda params: refusal if params[0] == "0x02" else "0x"
    taken, refused = client.send_raws([b"\x01", b"\x02"])
    assert taken is None
    assert isinstance(refused, NodeRefused)
    assert refused.message == "nonce too low"


def test_the_l1_fee_is_asked_of_the_oracle_for_the_bytes(peer: UnrulyPeer, client: ChainClient) -> None:
    peer.results["eth_call"] = "0x" + f"{12345:064x}"
    assert client.l1_fee("0x" + "42" * 20, b"\x02\xf8raw") == 12345
    asked = peer.requests[-1]["params"][0]
    assert asked["to"] == "0x" + "42" * 20
    assert asked["data"] == "0x" + (keccak(text="getL1Fee(bytes)")[:4] + encode(["bytes"], [b"\x02\xf8raw"])).hex()


def test_receipts_name_what_the_rollup_charged(peer: UnrulyPeer, client: ChainClient) -> None:
    mined = {
        "transactionHash": "0x" + "11" * 32,
        "blockNumber": "0x5",
        "blockHash": "0x" + f"{5:064x}",
        "status": "0x1",
        "gasUsed": "0x5208",
        "effectiveGasPrice": "0x1",
        "l1Fee": "0x64",
        "logs": [],
    }
    peer.results["eth_getTransactionReceipt"] = lambda params: mined if params[0].endswith("11") else None
    found, missing = client.receipts(["0x" + "11" * 32, "0x" + "22" * 32])
    assert found is not None
    assert (found.l1_fee, found.block_number, missing) == (100, 5, None)
    included, nowhere = client.inclusions(["0x" + "11" * 32, "0x" + "22" * 32])
    assert included is not None
    assert included.is_canonical
    assert nowhere is None
    mined["blockHash"] = "0x" + "99" * 32
    (orphaned,) = client.inclusions(["0x" + "11" * 32])
    assert orphaned is not None
    assert not orphaned.is_canonical


FAULTS = [
    (Reply(cut=True), "ended the connection"),
    (Reply(b"{", announced=50), "ended the connection"),
    (Reply(b'{"jsonrpc": "2.0", "id": 1, "resu'), "not JSON-RPC"),
    (Reply(b"<html>over capacity</html>"), "not JSON-RPC"),
    (Reply(b"[]"), "not JSON-RPC"),
    (Reply(b"[" * 100_000), "not JSON-RPC"),
    (Reply(b'{"jsonrpc": "2.0", "id": 1}'), "not JSON-RPC"),
    (Reply(json.dumps({"id": 10**9, "result": "0x1"}).encode()), "another question"),
    (Reply(json.dumps({"id": None, "result": "0x1"}).encode()), "another question"),
    (Reply(b"oops", status=500), "server error (HTTP 500)"),
    (Reply(b"bad gateway", status=502), "server error (HTTP 502)"),
    (Reply(b"who are you", status=401), "rejects requests (HTTP 401)"),
    (Reply(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"}), "redirects elsewhere"),
    (Reply(b"slow down", status=429), "fewer requests (HTTP 429)"),
    (Hold, "did not answer in time"),
]


@pytest.mark.parametrize(("reply", "words"), FAULTS, ids=[words + str(n) for n, (_, words) in enumerate(FAULTS)])
def test_each_fault_of_a_node_has_its_name(peer: UnrulyPeer, reply: Any, words: str) -> None:
    client = ChainClient([peer.url], chain_id=CHAIN_ID, timeout_seconds=0.3)
    peer.behave = lambda request: reply
    with pytest.raises(ChainUnavailable) as refused:
        client.balance(SENDER)
    assert words in str(refused.value)
    assert "tOkEn" not in str(refused.value)
    assert refused.value.__cause__ is None
    (state,) = client.endpoints()
    assert words in state.reason


@pytest.mark.parametrize("result", [None, 5, "no number", {}, [], "0x"])
def test_a_result_of_another_shape_is_no_answer(peer: UnrulyPeer, client: ChainClient, result: Any) -> None:
    peer.results["eth_getBalance"] = result
    with pytest.raises(ChainUnavailable, match="eth_getBalance was answered with something else"):
        client.balance(SENDER)


def test_an_answer_beyond_the_limit_is_not_read_to_its_end(
    peer: UnrulyPeer, client: ChainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 100_000)
    peer.results["eth_getCode"] = "0x" + "00" * 100_000
    with pytest.raises(ChainUnavailable, match="more than is accepted"):
        client.code(SENDER)


def test_a_json_rpc_error_is_the_nodes_refusal_whatever_the_http_status(peer: UnrulyPeer, client: ChainClient) -> None:
    assert client.balance(SENDER) == 1

    def behave(request: Any) -> Reply:
        error = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32000, "message": "nonce too low"}}
        return Reply(json.dumps(error).encode(), status=500)

    peer.behave = behave
    with pytest.raises(NodeRefused, match="nonce too low"):
        client.send_raw(b"\x01")


def test_a_refusal_that_quotes_the_url_is_shown_without_its_token(peer: UnrulyPeer, client: ChainClient) -> None:
    words = "project tOkEn0fTheProvider99 has no access"
    peer.results["eth_getBalance"] = {"error": {"code": -32000, "message": words}}
    with pytest.raises(NodeRefused, match=r"project \[redacted\] has no access"):
        client.balance(SENDER)


def test_a_node_that_is_not_there_is_named_by_its_place_only() -> None:
    client = ChainClient([DEAD_URL], chain_id=CHAIN_ID, timeout_seconds=1)
    for ask in (client.head, client.reported_chain_id):
        with pytest.raises(ChainUnavailable, match="RPC node 1") as refused:
            ask()
        for secret in ("pa55word", "tOkEn", "k3yInTheQuery", "user"):
            assert secret not in str(refused.value)
            assert secret not in repr(client.endpoints())


def test_without_any_node_the_error_says_what_to_set() -> None:
    with pytest.raises(ChainUnavailable, match="RPC_URL"):
        ChainClient([], chain_id=CHAIN_ID).head()
