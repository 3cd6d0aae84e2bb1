"""A chain of one account in memory, and nodes of it that misbehave: on the wire, in their words, or by what they know.

The chain takes signed transactions, keeps them in a pool, and mines those whose nonces follow each other.
A ``Node`` answers from it, unless its ``fault`` answers in its place: with an HTTP reply (``Reply``, ``HOLD``),
with a JSON-RPC error (``Refusal``) or with any other result. ``PASS`` leaves the question to the chain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import rlp
from eth_utils.crypto import keccak

from tests.chain.unruly_peer import CHAIN_ID, Hold, Reply, UnrulyPeer

HOLD = Hold
ROUNDS = 8
"""For so many a fault lasts."""
BASE_FEE = 10**9
TIP = 10**6
ESTIMATE = 100_000
_FIRST_BLOCK = 10
_GENESIS = 1_800_000_000
_FOREIGN = "0x" + "f0" * 32


class _Pass:
    """The chain shall answer."""


PASS = _Pass()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A JSON-RPC error."""

    message: str
    code: int = -32000
    data: str | None = None

    def as_error(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message} | ({"data": self.data} if self.data else {})


Fault = Callable[[str, list[Any]], Any]
"""From a method and its parameters to what the node says instead of the truth, or ``PASS``."""


def no_fault(method: str, params: list[Any]) -> Any:
    return PASS


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What a raw transaction says. Fees in wei per gas; ``data`` is empty for a transfer."""

    raw: str
    hash: str
    nonce: int
    tip: int
    fee_cap: int
    gas_limit: int
    data: bytes


def decoded(raw: str) -> Signed:
    octets = bytes.fromhex(raw.removeprefix("0x"))
    assert octets[0] == 2, "not an EIP-1559 transaction"
    fields = rlp.decode(octets[1:])
    nonce, tip, fee_cap, gas_limit = (int.from_bytes(each, "big") for each in fields[1:5])
    name = "0x" + keccak(octets).hex()
    return Signed(raw=raw, hash=name, nonce=nonce, tip=tip, fee_cap=fee_cap, gas_limit=gas_limit, data=fields[7])


@dataclass
class Chain:
    """Blocks, a pool and receipts. ``branch`` tells blocks of one height apart; a height keeps its own."""

    branch: int = 0
    base_fee: int = BASE_FEE
    pool: dict[int, Signed] = field(default_factory=dict)
    blocks: list[tuple[int, list[Signed | None]]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def head(self) -> int:
        return _FIRST_BLOCK + len(self.blocks)

    def mined(self) -> list[Signed | None]:
        """In the order of nonces; ``None`` for another wallet's."""
        return [one for _, included in self.blocks for one in included]

    def mine(self, *, blocks: int = 1) -> None:
        """What the pool holds, as far as nonces follow and fees suffice, into the next block."""
        with self.lock:
            for _ in range(blocks):
                included: list[Signed | None] = []
                next_nonce = len(self.mined())
                while (ready := self.pool.get(next_nonce)) and ready.fee_cap >= self.base_fee:
                    included.append(self.pool.pop(next_nonce))
                    next_nonce += 1
                self.blocks.append((self.branch, included))

    def steal(self) -> None:
        """Another wallet with the same key uses the next nonce."""
        with self.lock:
            self.pool.pop(len(self.mined()), None)
            self.blocks.append((self.branch, [None]))

    def reorganise(self, *, depth: int) -> None:
        """The newest blocks give way to empty ones; their transactions are forgotten."""
        with self.lock:
            self.branch += 1
            self.blocks[-depth:] = [(self.branch, []) for _ in range(depth)]

    def forget(self, nonce: int) -> None:
        with self.lock:
            del self.pool[nonce]

    def answer(self, method: str, params: list[Any]) -> Any:
        with self.lock:
            answers: dict[str, Callable[[], Any]] = {
                "eth_chainId": lambda: hex(CHAIN_ID),
                "eth_blockNumber": lambda: hex(self.head),
                "eth_getBlockByNumber": lambda: self._block(params[0]),
                "eth_maxPriorityFeePerGas": lambda: hex(TIP),
                "eth_getTransactionCount": lambda: hex(self._count(params[1])),
                "eth_estimateGas": lambda: hex(ESTIMATE),
                "eth_getTransactionReceipt": lambda: self.receipt(params[0]),
                "eth_sendRawTransaction": lambda: self._take(decoded(params[0])),
                "eth_getLogs": list,
                "eth_call": lambda: "0x",
            }
            known = answers.get(method)
            return known() if known else Refusal(message=f"the method {method} does not exist", code=-32601)

    def _height(self, block: str) -> int:
        return self.head if block in ("latest", "pending", "safe", "finalized") else int(block, 16)

    def _block(self, block: str) -> dict[str, Any] | None:
        height = self._height(block)
        if height > self.head:
            return None
        return {
            "number": hex(height),
            "hash": self.block_hash(height),
            "timestamp": hex(_GENESIS + height),
            "baseFeePerGas": hex(self.base_fee),
            "transactions": [one.hash if one else _FOREIGN for one in self._included(height)],
        }

    def _included(self, height: int) -> list[Signed | None]:
        return self.blocks[height - _FIRST_BLOCK - 1][1] if height > _FIRST_BLOCK else []

    def block_hash(self, height: int) -> str:
        branch = self.blocks[height - _FIRST_BLOCK - 1][0] if height > _FIRST_BLOCK else 0
        return "0x" + keccak(text=f"block {height} of branch {branch}").hex()

    def _count(self, block: str) -> int:
        return sum(len(included) for _, included in self.blocks[: max(0, self._height(block) - _FIRST_BLOCK)])

    def receipt(self, name: str) -> dict[str, Any] | None:
        for number, (_, included) in enumerate(self.blocks, _FIRST_BLOCK + 1):
            for one in included:
                if one is not None and one.hash == name:
                    return {
                        "transactionHash": name,
                        "blockNumber": hex(number),
                        "blockHash": self.block_hash(number),
                        "status": "0x1",
                        "gasUsed": hex(ESTIMATE),
                        "effectiveGasPrice": hex(self.base_fee + one.tip),
                        "logs": [],
                    }
        return None

    def _take(self, sent: Signed) -> Any:
        mined = len(self.mined())
        waiting = self.pool.get(sent.nonce)
        if sent.nonce < mined:
            return Refusal(message=f"nonce too low: next nonce {mined}, tx nonce {sent.nonce}")
        if waiting and waiting.hash == sent.hash:
            return Refusal(message="already known")
        if waiting and (sent.fee_cap * 10 < waiting.fee_cap * 11 or sent.tip * 10 < waiting.tip * 11):
            return Refusal(message="replacement transaction underpriced")
        self.pool[sent.nonce] = sent
        return sent.hash


class Node(UnrulyPeer):
    """A node of a chain, with a fault that may be replaced at any time. ``asked`` counts its questions."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.fault: Fault = no_fault
        self.behave = self._behave

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        handler = super()._handler()
        # Headers and body go out one after the other: without this each answer waits 40 ms.
        handler.disable_nagle_algorithm = True  # type: ignore[attr-defined]
        return handler

    def _behave(self, request: Any) -> Any:
        if isinstance(request, list):
            found = [self._answer(each) for each in request]
            return next((each for each in found if _is_raw(each)), found)
        return self._answer(request)

    def _answer(self, request: dict[str, Any]) -> Any:
        said = self.fault(request["method"], request["params"])
        if said is PASS:
            said = self.chain.answer(request["method"], request["params"])
        if _is_raw(said):
            return said
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        return answer | ({"error": said.as_error()} if isinstance(said, Refusal) else {"result": said})

    def sent(self, *, since: int = 0) -> list[Signed]:
        """The transactions that were handed to this node, in order, repetitions included."""
        return [decoded(params[0]) for method, params in self.questions(since) if method == "eth_sendRawTransaction"]

    def questions(self, since: int = 0) -> list[tuple[str, list[Any]]]:
        """Every question since a mark in ``requests``, batches flattened."""
        asked: list[tuple[str, list[Any]]] = []
        for request in self.requests[since:]:
            for each in request if isinstance(request, list) else [request]:
                asked.append((each["method"], each["params"]))
        return asked


def _is_raw(said: Any) -> bool:
    return said is HOLD or isinstance(said, Reply)


def instead(answer: Any, *methods: str) -> Callable[[Chain], Fault]:
    """``answer`` (or what it returns for the parameters) to these methods, to every method if none is named."""

    def build(chain: Chain) -> Fault:
        def fault(method: str, params: list[Any]) -> Any:
            if methods and method not in methods:
                return PASS
            return answer(params) if callable(answer) and answer is not HOLD else answer

        return fault

    return build
