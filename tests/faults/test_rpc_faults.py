"""Every fault that a node can show, over the whole life of a transaction: a named state, a reason, and a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from settlement.chain.bindings import ALL_ERRORS
from settlement.chain.client import ChainClient
from settlement.chain.contracts import encode_values
from settlement.chain.deployment import HOST_GENERATION, MISSION_GENERATION, MODEL_GENERATION, Deployment
from settlement.chain.marketplace import Refusal as Meaning
from settlement.chain.marketplaces import marketplace_of
from settlement.models import Attempt, Receipt, Transaction, TransactionState
from tests.chain.unruly_peer import CHAIN_ID
from tests.faults.rpc_faults import table
from tests.faults.rpc_node import PASS, Chain, Node, Refusal, decoded
from tests.faults.rpc_play import PAST_EVERY_PAUSE, RpcFault, play, turn
from tests.settlement.conftest import LIMITS, Clock, wallet_on

_SOURCES = Path(__file__).resolve().parents[2] / "settlement" / "contracts" / "src"

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(Chain()) as running:
        yield running


@pytest.mark.parametrize("fault", table(), ids=lambda fault: fault.name)
def test_a_fault_ends_in_its_state_with_its_reason_within_its_budget_and_is_got_over(
    fault: RpcFault, node: Node, clock: Clock, record_property: Callable[[str, object], None]
) -> None:
    found = play(fault, node=node, clock=clock)
    assert found.state == fault.state, found
    assert fault.reason in found.reason, found.reason
    assert bool(found.reason) == bool(fault.reason), found.reason
    assert fault.paused in found.paused and bool(found.paused) == bool(fault.paused), found.paused
    assert found.sends <= fault.sends, found
    assert found.attempts <= fault.attempts, found
    assert found.nonces <= fault.nonces, found
    assert found.worst_cost <= (fault.limits.get("max_cost") or LIMITS.max_cost)
    runs = int(fault.ends in (TransactionState.FINAL, TransactionState.REVERTED))
    assert (found.ended, found.runs) == (fault.ends, runs), found
    assert found.receipts == int(fault.ends != TransactionState.FAILED)
    record_property(
        "rpc_fault",
        (
            fault.name,
            found.state,
            found.reason or "-",
            found.paused,
            found.sends,
            fault.sends,
            found.attempts,
            fault.attempts,
            found.ended,
        ),
    )


def test_what_a_node_refuses_in_the_middle_of_a_batch_heals_without_another_nonce(node: Node, clock: Clock) -> None:
    """The rest of the batch is with the node by then, and waits for the one in the middle."""
    wallet = wallet_on(node.url, marketplace="0x" + "Aa" * 20, account=Account.create())
    rows = [wallet.enqueue(f"row {number}", call=wallet.call(number)) for number in range(5)]
    refused = iter([True])

    def fault(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction" and decoded(params[0]).nonce == 2 and next(refused, False):
            return Refusal(message="the stars are wrong")
        return PASS

    node.fault = fault
    assert wallet.broadcast() == 4
    node.chain.mine()
    wallet.watch()
    for _ in range(3):
        clock.offset += PAST_EVERY_PAUSE
        turn(wallet, node.chain)
    assert [Transaction.objects.get(pk=row.pk).state for row in rows] == [TransactionState.FINAL] * 5
    assert [one.nonce for one in node.chain.mined() if one] == [0, 1, 2, 3, 4]
    assert Attempt.objects.count() == 5


def test_two_nodes_that_tell_of_different_blocks_make_nothing_final_twice(node: Node, clock: Clock) -> None:
    """They take turns, and each has another block at the height of the receipt."""
    with Node(Chain(branch=7)) as other:
        account = Account.create()
        wallet = wallet_on(
            node.url, marketplace="0x" + "Aa" * 20, account=account, limits=replace(LIMITS, confirmations=4)
        )
        row = wallet.enqueue()
        wallet.broadcast()
        other.chain.pool = dict(node.chain.pool)
        for number in range(8):
            url = (node.url, other.url)[number % 2]
            wallet.client = ChainClient((url,), chain_id=CHAIN_ID)
            for chain in (node.chain, other.chain):
                if number < 3:
                    chain.mine()
            wallet.watch()
            row.refresh_from_db()
            assert row.state in (TransactionState.SENT, TransactionState.MINED)
        node.chain.mine(blocks=4)
        wallet.client = ChainClient((node.url,), chain_id=CHAIN_ID)
        for _ in range(3):
            wallet.watch()
        row.refresh_from_db()
        assert (row.state, Receipt.objects.count(), row.attempts.count()) == (TransactionState.FINAL, 1, 1)
        assert Receipt.objects.get().block_hash == node.chain.block_hash(11)


def _reasons(contract: str) -> list[str]:
    source = (_SOURCES / "test" / f"{contract}.sol").read_text()
    return sorted(set(re.findall(r'require\(.*?, "([^"]+)"\)', source)))


# Not among them is what a node says that does not have the job's block yet: UnknownJob and its like.
_PERMANENT = {
    HOST_GENERATION: {"SessionNotActive", "TooFewTokens", "ExceedsDeposit"},
    MISSION_GENERATION: {
        "Session not active",
        "Must claim minimum tokens",
        "Exceeds deposit",
        "Unauthorized",
    },
    MODEL_GENERATION: {
        "Not active",
        "Min tokens",
        "Over dep",
        "Not depositor or host",
        "Only host/depositor",
    },
}
_OTHERS = {
    "ProofAlreadyUsed": Meaning.ALREADY_CLAIMED,
    "ClaimTooFast": Meaning.TOO_FAST,
    "DisputeWindowOpen": Meaning.DISPUTE_WINDOW,
    "Proof already submitted": Meaning.ALREADY_CLAIMED,
    "Excessive tokens claimed": Meaning.TOO_FAST,
    "Must wait dispute window": Meaning.DISPUTE_WINDOW,
    "Proof already used": Meaning.ALREADY_CLAIMED,
    "Too many": Meaning.TOO_FAST,
    "Dispute wait": Meaning.DISPUTE_WINDOW,
}


def _encoded(name: str) -> bytes:
    """The revert data of a custom error of ours with zeros for arguments, or of a reason string."""
    known = next((error for error in ALL_ERRORS.values() if error.SPEC.name == name), None)
    if known is not None:
        return known.SPEC.selector + bytes(32 * len(known.SPEC.inputs))
    return keccak(text="Error(string)")[:4] + encode_values(("string",), (name,))


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        *((HOST_GENERATION, error.SPEC.name) for error in ALL_ERRORS.values()),
        *((MISSION_GENERATION, reason) for reason in _reasons("MissionStandIn")),
        *((MODEL_GENERATION, reason) for reason in _reasons("ModelStandIn")),
    ],
)
def test_each_refusal_of_each_generation_is_named_costs_nothing_and_has_a_meaning(
    node: Node, clock: Clock, generation: str, name: str
) -> None:
    refusal = Refusal(message="execution reverted", code=3, data="0x" + _encoded(name).hex())
    node.fault = lambda method, params: refusal if method == "eth_estimateGas" else PASS
    wallet = wallet_on(node.url, marketplace="0x" + "Aa" * 20, account=Account.create())
    row = wallet.enqueue()
    for _ in range(2):
        wallet.broadcast()
        clock.offset += PAST_EVERY_PAUSE
    row.refresh_from_db()
    assert (row.state, row.nonce, row.revert, node.sent()) == (TransactionState.FAILED, None, name, [])
    assert row.reason.startswith(name)
    expected = Meaning.PERMANENT if name in _PERMANENT[generation] else _OTHERS.get(name, Meaning.UNEXPLAINED)
    contract = to_checksum_address("0x" + "aa" * 20)
    deployment = Deployment(CHAIN_ID, generation, *[contract] * 5)
    assert marketplace_of(deployment).meaning_of(row.revert) is expected
