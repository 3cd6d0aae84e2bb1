"""A chain in memory with the node before it: blocks, a mempool, reorgs, a foreign wallet, and a node's bad days.

One account sends. The node takes the place of a client's transport, so that the client, its endpoints and its
parsing are the real ones. Every answer is made from the chain as it stands; faults are set beforehand and used up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from settlement.chain.answers import NodeRefused
from settlement.chain.transport import EndpointFailure, Fault, Question

T = TypeVar("T")

CHAIN_ID = 31337
GWEI = 10**9
CALL_GAS = 60_000
# ``Error(string)`` with "no such job".
REVERT_DATA = (
    "0x08c379a0"
    + (32).to_bytes(32, "big").hex()
    + (11).to_bytes(32, "big").hex()
    + b"no such job".ljust(32, b"\0").hex()
)
_WORDS = {
    "low": ("nonce too low: next nonce {0}, tx nonce {1}", "nonce too low", "OldNonce"),
    "known": ("already known", "transaction already imported", "AlreadyKnown"),
    "underpriced": ("replacement transaction underpriced", "could not replace existing tx", "ReplacementNotAllowed"),
    "base": ("max fee per gas less than block base fee: {0}", "max fee per gas less than block base fee", "FeeTooLow"),
    "poor": ("insufficient funds for gas * price + value: balance 0", "Insufficient funds", "InsufficientFunds"),
    "gap": ("nonce too high", "nonce gap", "NonceGap"),
}
SEND_FAULTS = ("lost before", "lost after", "429", "txpool is full", "-32000 whatever", "tx type not supported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A transaction as the network sees it. Fees in wei per gas."""

    hash: str
    nonce: int
    to: str
    data: str
    value: int
    gas: int
    max_fee: int
    tip: int
    chain_id: int
    sender: str
    foreign: bool = False

    @property
    def work(self) -> tuple[str, str] | None:
        """What the transaction calls; ``None`` for a transfer of nothing to oneself."""
        return None if self.to == self.sender else (self.to, self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBlock:
    number: int
    hash: str
    time: int
    base_fee: int
    transactions: tuple[Sent, ...]


@lru_cache(maxsize=50_000)
def decoded(raw: str) -> Sent:
    """Signed bytes, their signature checked."""
    fields = TypedTransaction.from_bytes(HexBytes(raw)).transaction.dictionary
    return Sent(
        hash="0x" + keccak(hexstr=raw).hex(),
        nonce=fields["nonce"],
        to="0x" + bytes(fields["to"]).hex(),
        data="0x" + bytes(HexBytes(fields["data"])).hex(),
        value=fields["value"],
        gas=fields["gas"],
        max_fee=fields["maxFeePerGas"],
        tip=fields["maxPriorityFeePerGas"],
        chain_id=fields["chainId"],
        sender=str(Account.recover_transaction(raw)).lower(),
    )


@dataclass
class SimulatedChain:
    """``refuses`` and ``reverts`` are what calls meet in simulation and when they run."""

    sender: str
    now: Callable[[], datetime]
    confirmations: int
    refuses: Callable[[str], bool]
    reverts: Callable[[str], bool]
    base_fee: int = GWEI
    pool: dict[int, Sent] = field(default_factory=dict)
    blocks: list[SimulatedBlock] = field(default_factory=list)
    _hashes: int = 0

    def __post_init__(self) -> None:
        self._append(())

    @property
    def head(self) -> int:
        return len(self.blocks) - 1

    @property
    def final(self) -> int:
        """The height of the newest final block; may be negative."""
        return self.head - self.confirmations + 1

    def count(self, height: int | None = None) -> int:
        """Transactions of the account up to a height."""
        upto = len(self.blocks) if height is None else max(0, height + 1)
        return sum(len(block.transactions) for block in self.blocks[:upto])

    def included(self) -> dict[str, tuple[Sent, SimulatedBlock]]:
        return {each.hash: (each, block) for block in self.blocks for each in block.transactions}

    def is_canonical(self, number: int, block_hash: str) -> bool:
        return number <= self.head and self.blocks[number].hash == block_hash

    def _append(self, transactions: Sequence[Sent]) -> None:
        self._hashes += 1
        self.blocks.append(
            SimulatedBlock(
                number=len(self.blocks),
                hash="0x" + keccak(text=f"block {self._hashes}").hex(),
                time=int(self.now().timestamp()),
                base_fee=self.base_fee,
                transactions=tuple(transactions),
            )
        )

    def mine(self, *, at_most: int = 100) -> None:
        taken: list[Sent] = []
        nonce = self.count()
        while len(taken) < at_most and (best := self.pool.get(nonce)) and best.max_fee >= self.base_fee:
            taken.append(self.pool.pop(nonce))
            nonce += 1
        self._append(taken)

    def reorg(self, depth: int, *, forgetful: bool, busy: bool) -> None:
        """Replace the newest blocks by as many others; their transactions return to the pool or are forgotten."""
        depth = min(depth, self.head)
        self._remove(depth, forgetful=forgetful)
        for _ in range(depth):
            if busy:
                self.mine()
            else:
                self._append(())

    def roll_back(self, depth: int) -> None:
        """The node died and lost its newest blocks and its pool; there is no finality to hold it."""
        self._remove(min(depth, self.head), forgetful=True)
        self.pool.clear()

    def _remove(self, depth: int, *, forgetful: bool) -> None:
        removed = [self.blocks.pop() for _ in range(depth)]
        if not forgetful:
            self.pool |= {each.nonce: each for block in removed for each in block.transactions}

    def drop(self, which: int) -> None:
        """The pool forgets one."""
        if self.pool:
            self.pool.pop(sorted(self.pool)[which % len(self.pool)])

    def use_elsewhere(self, *, fee: int, at_once: bool) -> None:
        """Another wallet with the same key sends something of its own with the next nonce."""
        nonce = self.count()
        self._hashes += 1
        foreign = Sent(
            hash="0x" + keccak(text=f"foreign {self._hashes}").hex(),
            nonce=nonce,
            to=self.sender,
            data="0x",
            value=0,
            gas=21_000,
            max_fee=fee,
            tip=fee,
            chain_id=CHAIN_ID,
            sender=self.sender,
            foreign=True,
        )
        waiting = self.pool.get(nonce)
        if waiting is None or _outbids(foreign, waiting):
            self.pool[nonce] = foreign
            if at_once:
                self.mine(at_most=1)


def _outbids(new: Sent, old: Sent) -> bool:
    return 10 * new.max_fee >= 11 * old.max_fee and 10 * new.tip >= 11 * old.tip


@dataclass
class SimulatedNode:
    """What a client talks to. ``before`` and ``after`` surround each request, ``on_send`` gets each transaction.

    ``send_faults`` are met one by one by transactions sent, ``silent`` requests go unanswered.
    """

    chain: SimulatedChain
    before: Callable[[str], None]
    after: Callable[[str], None]
    on_send: Callable[[Sent, str], None]
    send_faults: deque[str] = field(default_factory=deque)
    silent: int = 0
    behind: int = 0
    poor: bool = False
    strict_base_fee: bool = False
    no_gaps: bool = False
    preconfirms: bool = False
    has_no_receipts: bool = False
    dialect: int = 0

    def ask(self, method: str, params: Sequence[Any]) -> Any:
        """As ``Transport.ask``."""
        return self._at_boundary(method, lambda: self._answer(method, params))

    def ask_all(self, questions: Sequence[Question]) -> list[Any | NodeRefused]:
        """As ``Transport.ask_all``."""
        return self._at_boundary(questions[0][0], lambda: [self._told(*question) for question in questions])

    def calm(self) -> None:
        """Its bad days are over."""
        self.send_faults.clear()
        self.silent = self.behind = 0
        self.poor = self.strict_base_fee = self.no_gaps = self.preconfirms = self.has_no_receipts = False

    def _at_boundary(self, method: str, answer: Callable[[], T]) -> T:
        self.before(method)
        if self.silent:
            self.silent -= 1
            raise EndpointFailure(Fault.TIMED_OUT)
        found = answer()
        self.after(method)
        return found

    def _told(self, method: str, params: Sequence[Any]) -> Any | NodeRefused:
        try:
            return self._answer(method, params)
        except NodeRefused as refused:
            return refused

    def _answer(self, method: str, params: Sequence[Any]) -> Any:
        chain = self.chain
        seen = max(0, chain.head - self.behind)
        match method:
            case "eth_chainId":
                return hex(CHAIN_ID)
            case "eth_maxPriorityFeePerGas":
                return hex(10**6)
            case "eth_getTransactionCount":
                return hex(chain.count(seen if params[1] == "latest" else self._known(params[1], seen)))
            case "eth_getBlockByNumber":
                return self._block(seen if params[0] == "latest" else int(params[0], 16), seen)
            case "eth_getTransactionReceipt":
                return self._receipt(params[0], seen)
            case "eth_estimateGas":
                return self._estimate(params[0]["data"])
            case "eth_call":
                if chain.reverts(params[0]["data"]):
                    raise NodeRefused(method, code=3, message="execution reverted", data=bytes(HexBytes(REVERT_DATA)))
                return "0x"
            case "eth_sendRawTransaction":
                return self._take(params[0])
        raise NodeRefused(method, code=-32601, message=f"the method {method} does not exist")

    def _known(self, height: str, seen: int) -> int:
        if int(height, 16) > seen:
            raise NodeRefused("eth_getTransactionCount", code=-32000, message="header not found")
        return int(height, 16)

    def _block(self, number: int, seen: int) -> dict[str, Any] | None:
        if number > seen:
            return None
        block = self.chain.blocks[number]
        base_fee = self.chain.base_fee if number == seen else block.base_fee
        return {
            "number": hex(number),
            "hash": block.hash,
            "timestamp": hex(block.time),
            "baseFeePerGas": hex(base_fee),
            "transactions": [each.hash for each in block.transactions],
        }

    def _receipt(self, tx_hash: str, seen: int) -> dict[str, Any] | None:
        found = self.chain.included().get(tx_hash)
        if self.has_no_receipts:
            return None
        if found is None or found[1].number > seen:
            # A node that preconfirms speaks of a block that nobody has built yet.
            early = next((each for each in self.chain.pool.values() if each.hash == tx_hash), None)
            if early is None or not self.preconfirms:
                return None
            return _receipt_of(early, number=self.chain.head + 1, block_hash="0x" + "ee" * 32, price=GWEI, status=1)
        sent, block = found
        return _receipt_of(
            sent,
            number=block.number,
            block_hash=block.hash,
            price=min(sent.max_fee, block.base_fee + sent.tip),
            status=0 if sent.work and self.chain.reverts(sent.data) else 1,
        )

    def _estimate(self, data: str) -> str:
        if self.poor:
            raise self._refusal("poor")
        if self.chain.refuses(data):
            words = "execution reverted: no such job"
            raise NodeRefused("eth_estimateGas", code=3, message=words, data=bytes(HexBytes(REVERT_DATA)))
        return hex(CALL_GAS)

    def _take(self, raw: str) -> str:
        sent = decoded(raw)
        self.on_send(sent, raw)
        fault = self.send_faults.popleft() if self.send_faults else ""
        if fault == "lost after":
            self._quietly_accept(sent)
            raise EndpointFailure(Fault.TIMED_OUT)
        if fault == "lost before":
            raise EndpointFailure(Fault.CUT_OFF)
        if fault:
            code = -32005 if fault == "429" else -32000
            raise NodeRefused("eth_sendRawTransaction", code=code, message=fault)
        self._accept(sent)
        return sent.hash

    def _quietly_accept(self, sent: Sent) -> None:
        try:
            self._accept(sent)
        except NodeRefused:
            # Nobody hears the answer.
            return

    def _accept(self, sent: Sent) -> None:
        chain, used = self.chain, self.chain.count()
        waiting = chain.pool.get(sent.nonce)
        if sent.nonce < used:
            raise self._refusal("low", used, sent.nonce)
        if waiting is not None and waiting.hash == sent.hash:
            raise self._refusal("known")
        if self.poor:
            raise self._refusal("poor")
        if self.strict_base_fee and sent.max_fee < chain.base_fee:
            raise self._refusal("base", chain.base_fee)
        if waiting is not None and not _outbids(sent, waiting):
            raise self._refusal("underpriced")
        if self.no_gaps and any(nonce not in chain.pool for nonce in range(used, sent.nonce)):
            raise self._refusal("gap")
        chain.pool[sent.nonce] = sent

    def _refusal(self, kind: str, *values: int) -> NodeRefused:
        words = _WORDS[kind][self.dialect % 3].format(*values, 0)
        return NodeRefused("eth_sendRawTransaction", code=-32000, message=words)


def _receipt_of(sent: Sent, *, number: int, block_hash: str, price: int, status: int) -> dict[str, Any]:
    return {
        "transactionHash": sent.hash,
        "blockNumber": hex(number),
        "blockHash": block_hash,
        "status": hex(status),
        "gasUsed": hex(CALL_GAS - 20_000 if sent.work else 21_000),
        "effectiveGasPrice": hex(price),
        "logs": [],
    }
