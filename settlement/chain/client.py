"""JSON-RPC to the chain: the only place that talks to a node.

Guarantees typed answers and typed failures: ``ChainUnavailable`` when no node answered,
``NodeRefused`` when one answered with an error, ``CallReverted`` when the contract refused. The plural
methods put many questions into one request. Which of the configured nodes is asked, ``endpoints``
decides. Does not sign and does not decide what an answer means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from settlement.chain import answers
from settlement.chain.addresses import to_checksum_address
from settlement.chain.answers import (
    Block,
    CallReverted,
    ChainUnavailable,
    Inclusion,
    MinedReceipt,
    NodeRefused,
    Unreadable,
    as_revert,
)
from settlement.chain.contracts import Call, CodecError, FunctionSpec, encode_values, single
from settlement.chain.endpoints import NO_NODE, Endpoint, Endpoints, EndpointState, asks_for_fewer
from settlement.chain.transport import EndpointFailure, Fault, Question

__all__ = [
    "Block",
    "CallReverted",
    "ChainClient",
    "ChainUnavailable",
    "EndpointState",
    "Inclusion",
    "MinedReceipt",
    "NodeRefused",
]

T = TypeVar("T")

TIMEOUT_SECONDS = 15
BATCH_SIZE = 50
LOG_RANGE_BLOCKS = 1000
"""Public RPC nodes refuse to read logs over larger ranges."""
_GET_L1_FEE = FunctionSpec("getL1Fee", ("bytes",), ("uint256",))
# Waiting for these already took their time or was asked for: asking 50 times one by one helps nobody.
_NO_QUESTION_OF_BATCHES = frozenset({Fault.TIMED_OUT, Fault.UNREACHABLE, Fault.THROTTLED, Fault.REDIRECTED})
_HEADS = ("latest", "pending")


class ChainClient:
    """A chain, reached through one or more nodes. Raises ``ChainUnavailable`` from every method."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        chain_id: int,
        timeout_seconds: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chain_id = chain_id
        self._endpoints = Endpoints(urls, chain_id=chain_id, timeout_seconds=timeout_seconds, clock=clock)
        self._only: Endpoint | None = None

    def __repr__(self) -> str:
        return f"ChainClient(chain_id={self.chain_id}, {len(self._endpoints)} RPC nodes)"

    def endpoints(self) -> list[EndpointState]:
        """What is known of each configured node; no URLs."""
        return self._endpoints.states()

    def on_one_node(self, question: Callable[[ChainClient], T]) -> T:
        """``question`` asked of a client that puts all its calls to one and the same node.

        For answers that must fit each other: two providers may differ about one height. If the node
        fails midway, all of ``question`` is put to the next one; let nothing but its result matter.
        """

        def ask(endpoint: Endpoint) -> T:
            return question(self._pinned(endpoint))

        return ask(self._only) if self._only else self._endpoints.ask(ask, what="a series of calls")

    def _pinned(self, endpoint: Endpoint) -> ChainClient:
        pinned = ChainClient.__new__(ChainClient)
        pinned.chain_id, pinned._endpoints, pinned._only = self.chain_id, self._endpoints, endpoint
        return pinned

    def _ask(self, question: Callable[[Endpoint], T], *, what: str, stale_will_do: bool = False) -> T:
        if self._only is not None:
            # A pinned client lets failures through to whoever pinned it, who asks the next node.
            return question(self._only)
        return self._endpoints.ask(question, what=what, stale_will_do=stale_will_do)

    def _read(self, parse: Callable[[Any], T], method: str, *params: Any) -> T:
        def question(endpoint: Endpoint) -> T:
            return answers.read(endpoint.transport.ask(method, params), parse, method=method)

        return self._ask(question, what=method)

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of one JSON-RPC call, as it came. Raises ``NodeRefused``."""
        return self._read(lambda answer: answer, method, *params)

    def many(self, questions: Sequence[Question]) -> list[Any | NodeRefused]:
        """The results of calls (method, parameters), each a value or the node's refusal.

        Up to ``BATCH_SIZE`` travel in one request, and those come from one node; a node without batches
        is asked one by one.
        """
        return self._many(lambda answer: answer, questions)

    def _many(
        self, parse: Callable[[Any], T], questions: Sequence[Question], *, stale_will_do: bool = False
    ) -> list[T | NodeRefused]:
        found: list[T | NodeRefused] = []
        for start in range(0, len(questions), BATCH_SIZE):
            part = questions[start : start + BATCH_SIZE]

            def question(endpoint: Endpoint, part: Sequence[Question] = part) -> list[T | NodeRefused]:
                told = zip(part, self._batch(endpoint, part), strict=True)
                return [_value_or_refusal(answer, parse, method=method) for (method, _), answer in told]

            found += self._ask(question, what=_title(part), stale_will_do=stale_will_do)
        return found

    def _batch(self, endpoint: Endpoint, part: Sequence[Question]) -> list[Any | NodeRefused]:
        """Raises ``EndpointFailure`` where the node wants fewer questions and another one could be asked."""
        found = self._at_once(endpoint, part) if endpoint.batches and len(part) > 1 else None
        if found is None:
            found = [_single(endpoint, question) for question in part]
            if len(part) > 1:
                self._endpoints.refuses_batches(endpoint)
        slow_down = any(isinstance(answer, NodeRefused) and asks_for_fewer(answer) for answer in found)
        if slow_down and len(self._endpoints) > 1:
            raise EndpointFailure(Fault.THROTTLED)
        return found

    def _at_once(self, endpoint: Endpoint, part: Sequence[Question]) -> list[Any | NodeRefused] | None:
        """``None`` where the single questions must show whether it is the batch that the node refuses."""
        try:
            return endpoint.transport.ask_all(part)
        except EndpointFailure as failure:
            if failure.fault in _NO_QUESTION_OF_BATCHES:
                raise
        return None

    def _read_many(self, parse: Callable[[Any], T], questions: Sequence[Question]) -> list[T]:
        """Raises the first refusal among the answers."""
        found: list[T] = []
        for answer in self._many(parse, questions):
            if isinstance(answer, NodeRefused):
                raise answer
            found.append(answer)
        return found

    def reported_chain_id(self) -> int:
        """The chain id that the first node to answer states, be it the configured one or not."""
        reasons = []
        for endpoint in self._endpoints.each():
            try:
                answer = endpoint.transport.ask("eth_chainId", [])
                return answers.read(answer, answers.quantity, method="eth_chainId")
            except (EndpointFailure, Unreadable) as failure:
                reasons.append(f"{endpoint.name} {failure}")
        if not len(self._endpoints):
            raise ChainUnavailable(NO_NODE)
        raise ChainUnavailable(
            f"none of {len(self._endpoints)} configured RPC nodes answered eth_chainId: "
            + ("; ".join(reasons) or "they did not answer in time a moment ago")
        )

    def block(self, number: int | str = "latest") -> Block | None:
        """A block by number or tag ("safe", "finalized"); ``None`` if the node does not have it."""

        def question(endpoint: Endpoint) -> Block | None:
            method, params = _block_question(number)
            found = answers.read(endpoint.transport.ask(method, params), answers.block, method=method)
            self._note(endpoint, number, found)
            return found

        return self._ask(question, what="eth_getBlockByNumber")

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        """Blocks by number, in the order asked."""
        return self._read_many(answers.block, [_block_question(number) for number in numbers])

    def transactions_in(self, number: int) -> list[bytes] | None:
        """Hashes of a block's transactions; ``None`` if the node does not have the block."""
        method, params = _block_question(number)
        return self._read(answers.transaction_hashes, method, *params)

    def _note(self, endpoint: Endpoint, number: int | str, found: Block | None) -> None:
        if found is not None and number in _HEADS:
            self._endpoints.saw_head(endpoint, found.number)

    def head(self) -> Block:
        """The newest block."""
        block = self.block("latest")
        if block is None:
            raise ChainUnavailable("the node has no latest block")
        return block

    def call(self, call: Call[T], *, sender: str | None = None, block: str = "latest") -> T:
        """The decoded answer of a read. Raises ``CallReverted`` or ``CodecError``."""
        return call.decode(self._eth_call(call, sender=sender, block=block))

    def calls(
        self, calls: Sequence[Call[Any]], *, sender: str | None = None, block: str = "latest"
    ) -> list[Any | CallReverted | NodeRefused | CodecError]:
        """Decoded answers of reads, each a value or why there is none."""
        found = self._many(answers.octets, [("eth_call", [_call_fields(call, sender), block]) for call in calls])
        return [_decoded(answer, call) for answer, call in zip(found, calls, strict=True)]

    def simulate(self, call: Call[Any], *, sender: str) -> None:
        """Run a write without sending it. Raises ``CallReverted``."""
        self._eth_call(call, sender=sender, block="pending")

    def _eth_call(self, call: Call[Any], *, sender: str | None, block: str) -> bytes:
        try:
            return self._read(answers.octets, "eth_call", _call_fields(call, sender), block)
        except NodeRefused as refused:
            raise as_revert(refused, call) from refused

    def estimate_gas(self, call: Call[Any], *, sender: str) -> int:
        """Gas units for a write. Raises ``CallReverted``."""
        try:
            return self._read(answers.quantity, "eth_estimateGas", _call_fields(call, sender))
        except NodeRefused as refused:
            raise as_revert(refused, call) from refused

    def estimates(self, calls: Sequence[Call[Any]], *, sender: str) -> list[int | CallReverted | NodeRefused]:
        """Gas units for writes, each a number or why there is none. Each is simulated on its own."""
        found = self._many(answers.quantity, [("eth_estimateGas", [_call_fields(call, sender)]) for call in calls])
        told = zip(found, calls, strict=True)
        return [as_revert(answer, call) if isinstance(answer, NodeRefused) else answer for answer, call in told]

    def l1_fee(self, oracle: str, raw: bytes) -> int:
        """wei that a rollup charges for the data of a signed transaction. Raises ``CodecError``."""
        data = _GET_L1_FEE.selector + encode_values(_GET_L1_FEE.inputs, (raw,))
        call: Call[int] = Call(to_checksum_address(oracle), data, 0, _GET_L1_FEE, single)
        return self.call(call)

    def code(self, address: str) -> bytes:
        """The code at an address; empty if there is none."""
        return self._read(answers.octets, "eth_getCode", to_checksum_address(address), "latest")

    def balance(self, address: str) -> int:
        """wei"""
        return self._read(answers.quantity, "eth_getBalance", to_checksum_address(address), "latest")

    def transaction_count(self, address: str, *, block: str = "latest") -> int:
        """How many transactions of the account are mined ("latest") or known ("pending")."""
        return self._read(answers.quantity, "eth_getTransactionCount", to_checksum_address(address), block)

    def priority_fee(self) -> int:
        """The node's suggestion, wei per gas."""
        try:
            return self._read(answers.quantity, "eth_maxPriorityFeePerGas")
        except NodeRefused:
            return 10**9

    def send_raw(self, raw: bytes) -> None:
        """Hand signed bytes to a node, or to the next where one fails: the same bytes have one effect.

        Raises ``NodeRefused`` with the node's words.
        """
        method, params = _send_question(raw)

        def question(endpoint: Endpoint) -> None:
            endpoint.transport.ask(method, params)

        self._ask(question, what=method, stale_will_do=True)

    def send_raws(self, raws: Sequence[bytes]) -> list[NodeRefused | None]:
        """Hand several over, in their order; for each the node's refusal, or ``None`` where it took it."""
        found = self._many(lambda answer: answer, [_send_question(raw) for raw in raws], stale_will_do=True)
        return [answer if isinstance(answer, NodeRefused) else None for answer in found]

    def receipt(self, transaction_hash: str) -> MinedReceipt | None:
        """The receipt, or ``None`` while the transaction is not mined."""
        return self._read(answers.receipt, "eth_getTransactionReceipt", transaction_hash)

    def receipts(self, hashes: Sequence[str]) -> list[MinedReceipt | None]:
        """Receipts in the order asked; ``None`` for what is not mined."""
        return self._read_many(answers.receipt, [("eth_getTransactionReceipt", [each]) for each in hashes])

    def inclusions(self, hashes: Sequence[str]) -> list[Inclusion | None]:
        """Receipts with the blocks at their heights, both from one node; ``None`` for what is in no block."""
        return self.on_one_node(lambda node: node._inclusions(hashes))

    def _inclusions(self, hashes: Sequence[str]) -> list[Inclusion | None]:
        receipts = self.receipts(hashes)
        heights = sorted({receipt.block_number for receipt in receipts if receipt})
        blocks = dict(zip(heights, self.blocks(heights), strict=True))
        found: list[Inclusion | None] = []
        for receipt in receipts:
            block = blocks[receipt.block_number] if receipt else None
            found.append(Inclusion(receipt=receipt, block=block) if receipt and block else None)
        return found

    def logs(self, *, addresses: Iterable[str], from_block: int, to_block: int) -> list[Mapping[str, Any]]:
        """Undecoded logs of the addresses in the closed range of blocks."""
        criteria = {
            "address": [to_checksum_address(address) for address in addresses],
            "fromBlock": hex(from_block),
            "toBlock": hex(to_block),
        }
        return self._read(answers.logs, "eth_getLogs", criteria)

    def complete_logs(self, *, addresses: Iterable[str], from_block: int, to_block: int) -> list[Mapping[str, Any]]:
        """``logs`` of a node that has the last of the blocks: any other leaves out what it lacks without a word."""
        wanted = list(addresses)

        def question(endpoint: Endpoint) -> list[Mapping[str, Any]]:
            node = self._pinned(endpoint)
            if node.block(to_block) is None:
                raise EndpointFailure(Fault.STALE)
            return node.logs(addresses=wanted, from_block=from_block, to_block=to_block)

        return self._ask(question, what="eth_getLogs")


def _title(part: Sequence[Question]) -> str:
    method = part[0][0]
    return method if len(part) == 1 else f"{len(part)} calls of {method}"


def _single(endpoint: Endpoint, question: Question) -> Any | NodeRefused:
    method, params = question
    try:
        return endpoint.transport.ask(method, params)
    except NodeRefused as refused:
        return refused


def _block_question(number: int | str) -> Question:
    return "eth_getBlockByNumber", [number if isinstance(number, str) else hex(number), False]


def _send_question(raw: bytes) -> Question:
    return "eth_sendRawTransaction", ["0x" + raw.hex()]


def _call_fields(call: Call[Any], sender: str | None) -> dict[str, str]:
    fields = {"to": call.to, "data": "0x" + call.data.hex(), "value": hex(call.value)}
    if sender is not None:
        fields["from"] = to_checksum_address(sender)
    return fields


def _value_or_refusal(answer: Any, parse: Callable[[Any], T], *, method: str) -> T | NodeRefused:
    return answer if isinstance(answer, NodeRefused) else answers.read(answer, parse, method=method)


def _decoded(answer: bytes | NodeRefused, call: Call[Any]) -> Any:
    """A read's value, or as a value why there is none."""
    if isinstance(answer, NodeRefused):
        return as_revert(answer, call)
    try:
        return call.decode(answer)
    except CodecError as unfit:
        return unfit
