"""The table of what a node may do to a transaction, and what has to become of it.

``python -m tests.faults.rpc_table`` plays all of it and writes docs/rpc-faults.md.
"""

from __future__ import annotations

from typing import Any

from settlement.models import TransactionState
from tests.chain.unruly_peer import Reply
from tests.faults.rpc_node import BASE_FEE, ESTIMATE, HOLD, PASS, ROUNDS, TIP, Chain, Fault, Refusal, instead
from tests.faults.rpc_play import RpcFault

QUEUED, IN_PROGRESS, SENT = TransactionState.QUEUED, TransactionState.IN_PROGRESS, TransactionState.SENT
FINAL, FAILED, REVERTED = TransactionState.FINAL, TransactionState.FAILED, TransactionState.REVERTED

SEND, ESTIMATING, RECEIPT = "eth_sendRawTransaction", "eth_estimateGas", "eth_getTransactionReceipt"
COUNT, CHAIN_ID_OF, BLOCK, CALL = "eth_getTransactionCount", "eth_chainId", "eth_getBlockByNumber", "eth_call"
ORACLE = "0x420000000000000000000000000000000000000F"

_AFTER_A_WHILE = Reply(status=429, headers={"Retry-After": "120"})
_WIRE: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "time-out": (HOLD, "did not answer in time", {"timeout": 0.1}),
    "connection refused": (HOLD, "cannot be reached", {"nobody_there": True}),
    "connection cut": (Reply(cut=True), "ended the connection without an answer", {}),
    "429": (Reply(b"slow down", status=429), "asks for fewer requests (HTTP 429)", {}),
    "429, Retry-After": (_AFTER_A_WHILE, "asks for fewer requests (HTTP 429)", {}),
    "500": (Reply(b'{"error": "oops"', status=500), "server error (HTTP 500)", {}),
    "502 HTML": (Reply(b"<html><h1>502 Bad Gateway</h1></html>", status=502), "server error (HTTP 502)", {}),
    "403": (Reply(b"no", status=403), "rejects requests (HTTP 403)", {}),
    "redirect": (Reply(status=302, headers={"Location": "http://127.0.0.1/"}), "redirects elsewhere", {}),
    "truncated JSON": (Reply(b'{"jsonrpc": "2.0", "id": 1, "resu'), "not JSON-RPC", {}),
    "answer cut short": (Reply(b'{"jsonrpc"', announced=999), "without an answer", {}),
    "wrong id": (Reply(b'{"jsonrpc": "2.0", "id": 987654, "result": "0x1"}'), "another question", {}),
    "empty body": (Reply(b""), "not JSON-RPC", {}),
}


def on_the_wire() -> list[RpcFault]:
    """Each fault of the transport at each stage of a transaction's life."""
    rows = []
    for name, (answer, words, extra) in _WIRE.items():

        def row(
            stage: str, *methods: str, name: str = name, answer: Any = answer, words: str = words, **more: Any
        ) -> RpcFault:
            return RpcFault(name=f"{name}, {stage}", fault=instead(answer, *methods), reason=words, **more)

        rows.append(row("always", state=QUEUED, sends=0, attempts=0, **extra))
        rows.append(row("always once it is sent", in_flight=True, state=SENT, sends=1, **extra))
        if "nobody_there" in extra:
            continue
        rows.append(row("to estimates", ESTIMATING, state=QUEUED, sends=0, attempts=0, **extra))
        # One send for each pause that is over.
        rows.append(row("to sends", SEND, state=IN_PROGRESS, sends=ROUNDS, **extra))
        # The first send, and one for each round without a receipt.
        rows.append(row("to receipts", RECEIPT, in_flight=True, state=SENT, sends=1 + ROUNDS, **extra))
    return rows


def _says(name: str, message: str, reason: str, **more: Any) -> RpcFault:
    """The node refuses every send with these words: the same bytes again, once a pause."""
    options: dict[str, Any] = {"state": IN_PROGRESS, "sends": ROUNDS, "reason": reason} | more
    return RpcFault(name=name, fault=instead(Refusal(message=message), SEND), **options)


_SAME_BYTES = [
    _says("nonce too high", "nonce too high: address 0xb0, tx: 5 state: 4", "nonce_too_high: nonce too high"),
    _says(
        "fee over the node's cap",
        "tx fee (2.00 ether) exceeds the configured cap (1.00 ether)",
        "fee_over_node_cap: tx fee (2.00 ether) exceeds the configured cap",
    ),
    _says("intrinsic gas too low", "intrinsic gas too low: gas 21000, minimum needed 23184", "gas_too_high: intrinsic"),
    _says("over the block's gas limit", "exceeds block gas limit", "gas_too_high: exceeds block gas limit"),
    _says("pool full", "txpool is full", "unavailable: txpool is full"),
    _says("syncing", "node is syncing, try again", "unavailable: node is syncing"),
    _says("words nobody knows", "the stars are wrong", "unknown: the stars are wrong"),
    _says("a sequencer's simulation", "execution reverted", "reverted: execution reverted"),
    RpcFault(
        name="rate limit in JSON-RPC",
        fault=instead(Refusal(message="daily request count exceeded", code=-32005), SEND),
        state=IN_PROGRESS,
        reason="rate_limited: daily request count exceeded",
        sends=ROUNDS,
    ),
    _says(
        "insufficient funds when sending",
        "insufficient funds for gas * price + value: balance 0, tx cost 250125000000000",
        "insufficient_funds: insufficient funds for gas",
        paused="cannot pay for gas: insufficient funds",
    ),
]

# From 2 gwei + 1 Mwei, a tenth more each time, up to 3 gwei: five attempts.
_CAPPED = {"max_fee_per_gas": 3 * BASE_FEE}
_UP_TO_THE_CAP = 5
_AT_THE_CAP = "at the fee cap (FABSTIR_MAX_FEE_PER_GAS_WEI)"

_PRICES = [
    _says(
        "underpriced",
        "transaction underpriced",
        "underpriced: transaction underpriced",
        attempts=_UP_TO_THE_CAP,
        sends=ROUNDS,
        limits=_CAPPED,
    ),
    _says(
        "replacement underpriced",
        "replacement transaction underpriced",
        "replacement_underpriced: ",
        attempts=_UP_TO_THE_CAP,
        sends=ROUNDS,
        limits=_CAPPED,
    ),
    _says(
        "fee below the base fee",
        "max fee per gas less than block base fee: maxFeePerGas: 1, baseFee: 9",
        "fee_below_base: max fee per gas",
        attempts=_UP_TO_THE_CAP,
        sends=ROUNDS,
        limits=_CAPPED,
    ),
    RpcFault(
        name="base fee above the host's cap",
        fault=instead(PASS),
        before=lambda chain: setattr(chain, "base_fee", 5 * BASE_FEE),
        after=lambda chain: setattr(chain, "base_fee", BASE_FEE),
        state=SENT,
        reason=_AT_THE_CAP,
        sends=1 + ROUNDS,
        limits=_CAPPED,
    ),
    RpcFault(
        name="base fee rises while in flight",
        fault=instead(PASS),
        in_flight=True,
        before=lambda chain: setattr(chain, "base_fee", 5 * BASE_FEE),
        state=FINAL,
        reason="",
        sends=2,
        attempts=2,
    ),
]


def _taken_and_called_known(chain: Chain) -> Fault:
    def fault(method: str, params: list[Any]) -> Any:
        if method != SEND:
            return PASS
        chain.answer(method, params)
        return Refusal(message="already known")

    return fault


def _mined_and_called_too_low(chain: Chain) -> Fault:
    def fault(method: str, params: list[Any]) -> Any:
        if method != SEND:
            return PASS
        chain.answer(method, params)
        chain.mine()
        return Refusal(message="nonce too low: next nonce 1, tx nonce 0")

    return fault


def _stolen_at_the_first_send(chain: Chain) -> Fault:
    def fault(method: str, params: list[Any]) -> Any:
        if method == SEND and not chain.mined():
            chain.steal()
        return PASS

    return fault


def _orphaned(chain: Chain) -> Fault:
    def fault(method: str, params: list[Any]) -> Any:
        told = chain.receipt(params[0]) if method == RECEIPT else None
        return {**told, "blockHash": "0x" + "0b" * 32} if told else PASS

    return fault


def _swallowed(chain: Chain) -> Fault:
    return instead(lambda params: "0x" + "ab" * 32, SEND)(chain)


def _refuses_the_call(chain: Chain) -> Fault:
    """No transaction with calldata is taken; one without is."""

    def fault(method: str, params: list[Any]) -> Any:
        if method == SEND and len(params[0]) > 400:
            return Refusal(message="invalid sender")
        return PASS

    return fault


def _reverted(chain: Chain) -> Fault:
    def fault(method: str, params: list[Any]) -> Any:
        if method == CALL:
            return Refusal(message="execution reverted", code=3, data="0x")
        told = chain.receipt(params[0]) if method == RECEIPT else None
        return {**told, "status": "0x0"} if told else PASS

    return fault


_KNOWS_OTHERWISE = [
    RpcFault(
        name="already known",
        fault=_taken_and_called_known,
        state=FINAL,
        reason="",
        sends=1,
    ),
    RpcFault(
        name="nonce too low, and it is ours that was mined",
        fault=_mined_and_called_too_low,
        state=FINAL,
        reason="",
        sends=1,
    ),
    RpcFault(
        name="nonce too low, and another wallet's was mined",
        fault=_stolen_at_the_first_send,
        state=FINAL,
        reason="",
        sends=5,
        attempts=2,
        nonces=2,
    ),
    RpcFault(
        name="accepted and never mined",
        fault=_swallowed,
        state=SENT,
        reason="",
        sends=1 + ROUNDS,
    ),
    RpcFault(
        name="no receipt, then one",
        fault=instead(None, RECEIPT),
        in_flight=True,
        state=SENT,
        reason="nonce 0 is its own, in block 11, but the node has no receipt: ask another (RPC_URL)",
        sends=1 + ROUNDS,
    ),
    RpcFault(
        name="receipt of an orphaned block",
        fault=_orphaned,
        state=SENT,
        reason="",
        sends=1 + ROUNDS,
    ),
    RpcFault(
        name="wrong chain id",
        fault=instead("0x5", CHAIN_ID_OF),
        state=QUEUED,
        reason="",
        paused="the node is of chain 5",
        sends=0,
        attempts=0,
    ),
    RpcFault(
        name="wrong chain id while in flight",
        fault=instead("0x5", CHAIN_ID_OF),
        in_flight=True,
        state=SENT,
        reason="is a node of another chain",
        paused="the node is of chain 5",
        sends=1,
    ),
    RpcFault(
        name="forgotten by the pool",
        fault=instead(PASS),
        in_flight=True,
        before=lambda chain: chain.forget(0),
        state=FINAL,
        reason="",
        sends=2,
    ),
    RpcFault(
        name="refused for good",
        fault=_refuses_the_call,
        state=TransactionState.CANCELLED,
        reason="fatal: invalid sender",
        sends=3,
        attempts=2,
        ends=TransactionState.CANCELLED,
    ),
    RpcFault(
        name="mined with status 0",
        fault=_reverted,
        state=REVERTED,
        reason="reverted without data",
        sends=1,
        ends=REVERTED,
    ),
    RpcFault(
        name="state of old blocks pruned",
        state=FINAL,
        reason="",
        sends=1,
        fault=instead(lambda params: PASS if params[1] == "latest" else Refusal(message="missing trie node"), COUNT),
    ),
    RpcFault(
        name="no suggestion for the tip",
        state=FINAL,
        reason="",
        sends=1,
        fault=instead(Refusal(message="the method does not exist", code=-32601), "eth_maxPriorityFeePerGas"),
    ),
]


def _estimates(name: str, answer: Any, reason: str, **more: Any) -> RpcFault:
    options: dict[str, Any] = {"state": QUEUED, "sends": 0, "attempts": 0, "reason": reason} | more
    return RpcFault(name=name, fault=instead(answer, ESTIMATING), **options)


_COST = ESTIMATE * (5 * BASE_FEE + TIP) * 5 // 4

_ESTIMATES = [
    _estimates(
        "selector missing",
        Refusal(message="execution reverted", code=3, data="0x"),
        "reverted without data",
        state=FAILED,
        ends=FAILED,
    ),
    _estimates("estimating fails inside", Refusal(message="internal error", code=-32603), "internal error (-32603)"),
    _estimates(
        "insufficient funds when estimating",
        Refusal(message="insufficient funds for transfer"),
        "cannot pay for gas",
        paused="cannot pay for gas: insufficient funds",
    ),
    _estimates("estimate over what a block takes", hex(2**25), "needs 33554432 gas; a transaction has at most"),
    _estimates(
        "estimate over the host's limit",
        hex(2**24),
        "above its limit of 1000000000000000: waits for a lower",
        limits={"max_cost": 10**15},
    ),
    RpcFault(
        name="costs more than it settles",
        fault=instead(PASS),
        before=lambda chain: setattr(chain, "base_fee", 5 * BASE_FEE),
        after=lambda chain: setattr(chain, "base_fee", BASE_FEE),
        state=QUEUED,
        sends=0,
        attempts=0,
        reason=f"would cost {_COST} wei now, above its limit of {2 * 10**14}: waits for a lower price",
        options={"cost_limit": 2 * 10**14},
    ),
    RpcFault(
        name="daily budget spent",
        fault=instead(PASS),
        state=QUEUED,
        sends=0,
        attempts=0,
        reason="the daily gas budget of 1000 wei (FABSTIR_DAILY_GAS_BUDGET_WEI) has 1000 wei left",
        paused="the daily gas budget of 1000 wei (FABSTIR_DAILY_GAS_BUDGET_WEI)",
        limits={"daily_budget": 1000},
        afterwards={"daily_budget": 10**20},
    ),
]
_L1: dict[str, Any] = {
    "state": QUEUED,
    "sends": 0,
    "attempts": 0,
    "limits": {"fee_oracle": ORACLE},
    "afterwards": {"fee_oracle": None},
}
_ORACLE_SAYS: dict[str, tuple[Any, str]] = {
    "reverts": (Refusal(message="execution reverted", code=3, data="0x"), "reverted without data"),
    "is not there": ("0x", "does not tell its fee: cannot decode"),
    "is not answered for": (Refusal(message="internal error", code=-32603), "internal error"),
    "asks for more than the limit": ("0x" + f"{10**18:064x}", "above its limit of 1000000000000000000"),
}
_ORACLE = [
    RpcFault(
        name=f"the L1 fee oracle {what}",
        fault=instead(answer, CALL),
        reason=reason,
        paused="" if what.startswith("asks") else f"the L1 fee oracle {ORACLE} (FABSTIR_L1_FEE_ORACLE) does not",
        **_L1,
    )
    for what, (answer, reason) in _ORACLE_SAYS.items()
]


def table() -> list[RpcFault]:
    """Every fault, each a name of its own."""
    return [*on_the_wire(), *_SAME_BYTES, *_PRICES, *_KNOWS_OTHERWISE, *_ESTIMATES, *_ORACLE]
