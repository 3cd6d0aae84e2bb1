"""What a node's answers are in Python: blocks, receipts, refusals and reverts.

Guarantees that an answer of another shape than JSON-RPC prescribes is an ``Unreadable``, never a value
that looks right. Talks to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from hexbytes import HexBytes

from settlement.chain.contracts import Call
from settlement.chain.reverts import Revert, revert_in_words

T = TypeVar("T")
_LONGEST_WORDS = 300


class ChainUnavailable(Exception):
    """No configured node answered. Trying again later may help. Never carries a node's URL."""


class NodeRefused(Exception):
    """A node answered with a JSON-RPC error. ``code`` and ``message`` are the node's, without URL tokens."""

    def __init__(self, method: str, *, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"{method}: {message} ({code})")
        self.method = method
        self.code = code
        self.message = message
        self.data = data


class CallReverted(Exception):
    """The contract refused the call; ``revert`` says how."""

    def __init__(self, function: str, *, revert: Revert) -> None:
        super().__init__(f"{function} reverts: {revert}")
        self.revert = revert


class Unreadable(Exception):
    """The node's answer is none to the question. Names the method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's identity; ``time`` is the chain's, not the wall clock's. Fees in wei."""

    number: int
    hash: bytes
    time: datetime
    base_fee: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedReceipt:
    """A receipt as the node gave it. Prices in wei per gas, ``l1_fee`` in wei; ``logs`` undecoded.

    ``l1_fee`` is what a rollup charged for its data on top of the gas; 0 on a chain without such a fee.
    """

    transaction_hash: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    effective_gas_price: int
    logs: tuple[Mapping[str, Any], ...]
    l1_fee: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """A receipt and the canonical block at its height, both told by one node at one time."""

    receipt: MinedReceipt
    block: Block

    @property
    def is_canonical(self) -> bool:
        """Whether the receipt's block is the one that the chain has at its height."""
        return self.block.hash == self.receipt.block_hash


def read(answer: Any, parse: Callable[[Any], T], *, method: str) -> T:
    """``parse(answer)``. Raises ``Unreadable`` where the answer has another shape."""
    try:
        return parse(answer)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        # The answer itself may be long, or quote what the question held.
        raise Unreadable(f"{method} was answered with something else ({type(problem).__name__})") from None


def quantity(answer: Any) -> int:
    """A number, which JSON-RPC writes in hex."""
    if not isinstance(answer, str):
        raise TypeError(f"no quantity but {type(answer).__name__}")
    return int(answer, 16)


def octets(answer: Any) -> bytes:
    """Bytes, which JSON-RPC writes in hex."""
    if not isinstance(answer, str):
        raise TypeError(f"no data but {type(answer).__name__}")
    return bytes(HexBytes(answer))


def block(answer: Any) -> Block | None:
    """A block; ``None`` if the node does not have it."""
    if answer is None:
        return None
    return Block(
        number=quantity(answer["number"]),
        hash=octets(answer["hash"]),
        time=datetime.fromtimestamp(quantity(answer["timestamp"]), UTC),
        base_fee=quantity(answer.get("baseFeePerGas") or "0x0"),
    )


def transaction_hashes(answer: Any) -> list[bytes] | None:
    """The hashes of a block's transactions; ``None`` if the node does not have the block."""
    return None if answer is None else [octets(each) for each in answer["transactions"]]


def head(answer: Any) -> Block:
    """The newest block, which every chain has."""
    newest = block(answer)
    if newest is None:
        raise ValueError("no latest block")
    return newest


def receipt(answer: Any) -> MinedReceipt | None:
    """A receipt; ``None`` while the transaction is not in a block."""
    if answer is None or answer.get("blockHash") is None:
        return None
    return MinedReceipt(
        transaction_hash=octets(answer["transactionHash"]),
        block_number=quantity(answer["blockNumber"]),
        block_hash=octets(answer["blockHash"]),
        succeeded=quantity(answer["status"]) == 1,
        gas_used=quantity(answer["gasUsed"]),
        effective_gas_price=quantity(answer.get("effectiveGasPrice") or "0x0"),
        logs=tuple(answer["logs"]),
        l1_fee=quantity(answer.get("l1Fee") or "0x0"),
    )


def logs(answer: Any) -> list[Mapping[str, Any]]:
    """Undecoded logs."""
    if not isinstance(answer, list) or not all(isinstance(log, Mapping) for log in answer):
        raise TypeError("no list of logs")
    return answer


def refusal(method: str, error: Any) -> NodeRefused:
    """A JSON-RPC error object, or whatever stands in its place."""
    if not isinstance(error, Mapping):
        return NodeRefused(method, code=0, message=str(error)[:_LONGEST_WORDS])
    code = error.get("code")
    return NodeRefused(
        method,
        code=code if isinstance(code, int) else 0,
        message=str(error.get("message"))[:_LONGEST_WORDS],
        data=_revert_data(error.get("data")),
    )


def as_revert(refused: NodeRefused, call: Call[Any]) -> CallReverted | NodeRefused:
    """A refusal that carries revert data, or says "revert", is the contract's; any other the node's."""
    if refused.data or "revert" in refused.message.lower():
        return CallReverted(call.function.name, revert=revert_in_words(refused.data, refused.message))
    return refused


def _revert_data(raw: Any) -> bytes:
    """As nodes wrap it: hex, hex in an object, or hex after a word ("Reverted 0x…")."""
    if isinstance(raw, Mapping):
        raw = raw.get("data") or raw.get("result")
    if not isinstance(raw, str):
        return b""
    _, found, digits = raw.rpartition("0x")
    try:
        return bytes.fromhex(digits) if found else b""
    except ValueError:
        return b""
