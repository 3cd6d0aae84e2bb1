"""JSON-RPC to the chain: the only place that talks to a node.

Guarantees typed answers and typed failures: ``ChainUnavailable`` when no node answered,
``NodeRefused`` when one answered with an error, ``CallReverted`` when the contract refused. Tries the
configured nodes in order. Does not sign, does not decide, and holds no state beyond connections.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import requests
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import HTTPProvider
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from settlement.chain.contracts import Call
from settlement.chain.reverts import Revert, decode_revert

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_SECONDS = 15


class ChainUnavailable(Exception):
    """No configured node answered. Trying again later may help. Never carries a node's URL."""


class NodeRefused(Exception):
    """A node answered with a JSON-RPC error. ``code`` and ``message`` are the node's."""

    def __init__(self, method: str, *, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"{method}: {message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class CallReverted(Exception):
    """The contract refused the call; ``revert`` says how."""

    def __init__(self, function: str, *, revert: Revert) -> None:
        super().__init__(f"{function} reverts: {revert}")
        self.revert = revert


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's identity; ``time`` is the chain's, not the wall clock's. Fees in wei."""

    number: int
    hash: bytes
    time: datetime
    base_fee: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedReceipt:
    """A receipt as the node gave it. ``effective_gas_price`` in wei; ``logs`` undecoded."""

    transaction_hash: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    effective_gas_price: int
    logs: tuple[Mapping[str, Any], ...]


class ChainClient:
    """A chain, reached through one or more nodes. Raises ``ChainUnavailable`` from every method."""

    def __init__(self, urls: Sequence[str], *, chain_id: int) -> None:
        self.chain_id = chain_id
        self._providers = [
            HTTPProvider(url, request_kwargs={"timeout": TIMEOUT_SECONDS}, exception_retry_configuration=None)
            for url in urls
        ]

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of one JSON-RPC call. Raises ``NodeRefused``."""
        if not self._providers:
            raise ChainUnavailable("no node of the chain is configured or running (set RPC_URL, or start the node)")
        for index, provider in enumerate(self._providers):
            try:
                response = provider.make_request(RPCEndpoint(method), list(params))
            except (requests.RequestException, Web3Exception, OSError, ValueError) as failure:
                # The failure's text may hold the URL and with it a token.
                logger.warning("RPC node %d did not answer %s: %s", index + 1, method, type(failure).__name__)
                continue
            if "error" in response:
                raise _refusal(method, response["error"])
            return response.get("result")
        raise ChainUnavailable(f"none of {len(self._providers)} configured RPC nodes answered {method}")

    def reported_chain_id(self) -> int:
        """The chain id that the node itself states."""
        return int(self.rpc("eth_chainId"), 16)

    def block(self, number: int | str = "latest") -> Block | None:
        """A block by number or tag; ``None`` if the node does not have it."""
        raw = self.rpc("eth_getBlockByNumber", number if isinstance(number, str) else hex(number), False)
        if raw is None:
            return None
        return Block(
            number=int(raw["number"], 16),
            hash=bytes(HexBytes(raw["hash"])),
            time=datetime.fromtimestamp(int(raw["timestamp"], 16), UTC),
            base_fee=int(raw.get("baseFeePerGas") or "0x0", 16),
        )

    def head(self) -> Block:
        """The newest block."""
        block = self.block("latest")
        if block is None:
            raise ChainUnavailable("the node has no latest block")
        return block

    def call(self, call: Call[T], *, sender: str | None = None, block: str = "latest") -> T:
        """The decoded answer of a read. Raises ``CallReverted`` or ``CodecError``."""
        return call.decode(self._eth_call(call, sender=sender, block=block))

    def simulate(self, call: Call[Any], *, sender: str) -> None:
        """Run a write without sending it. Raises ``CallReverted``."""
        self._eth_call(call, sender=sender, block="pending")

    def _eth_call(self, call: Call[Any], *, sender: str | None, block: str) -> bytes:
        try:
            return bytes(HexBytes(self.rpc("eth_call", _call_fields(call, sender), block)))
        except NodeRefused as refused:
            raise _as_revert(refused, call) from refused

    def estimate_gas(self, call: Call[Any], *, sender: str) -> int:
        """Gas units for a write. Raises ``CallReverted``."""
        try:
            return int(self.rpc("eth_estimateGas", _call_fields(call, sender)), 16)
        except NodeRefused as refused:
            raise _as_revert(refused, call) from refused

    def code(self, address: str) -> bytes:
        """The code at an address; empty if there is none."""
        return bytes(HexBytes(self.rpc("eth_getCode", to_checksum_address(address), "latest")))

    def balance(self, address: str) -> int:
        """wei"""
        return int(self.rpc("eth_getBalance", to_checksum_address(address), "latest"), 16)

    def transaction_count(self, address: str, *, block: str = "latest") -> int:
        """How many transactions of the account are mined ("latest") or known ("pending")."""
        return int(self.rpc("eth_getTransactionCount", to_checksum_address(address), block), 16)

    def priority_fee(self) -> int:
        """The node's suggestion, wei per gas."""
        try:
            return int(self.rpc("eth_maxPriorityFeePerGas"), 16)
        except NodeRefused:
            return 10**9

    def send_raw(self, raw: bytes) -> None:
        """Hand signed bytes to a node. Raises ``NodeRefused`` with the node's words."""
        self.rpc("eth_sendRawTransaction", "0x" + raw.hex())

    def receipt(self, transaction_hash: str) -> MinedReceipt | None:
        """The receipt, or ``None`` while the transaction is not mined."""
        raw = self.rpc("eth_getTransactionReceipt", transaction_hash)
        if raw is None or raw.get("blockHash") is None:
            return None
        return MinedReceipt(
            transaction_hash=bytes(HexBytes(raw["transactionHash"])),
            block_number=int(raw["blockNumber"], 16),
            block_hash=bytes(HexBytes(raw["blockHash"])),
            succeeded=int(raw["status"], 16) == 1,
            gas_used=int(raw["gasUsed"], 16),
            effective_gas_price=int(raw.get("effectiveGasPrice") or "0x0", 16),
            logs=tuple(raw["logs"]),
        )

    def logs(self, *, addresses: Iterable[str], from_block: int, to_block: int) -> list[Mapping[str, Any]]:
        """Undecoded logs of the addresses in the closed range of blocks."""
        criteria = {
            "address": [to_checksum_address(address) for address in addresses],
            "fromBlock": hex(from_block),
            "toBlock": hex(to_block),
        }
        return list(self.rpc("eth_getLogs", criteria))


def _call_fields(call: Call[Any], sender: str | None) -> dict[str, str]:
    fields = {"to": call.to, "data": "0x" + call.data.hex(), "value": hex(call.value)}
    if sender is not None:
        fields["from"] = to_checksum_address(sender)
    return fields


def _refusal(method: str, error: Any) -> NodeRefused:
    if not isinstance(error, Mapping):
        return NodeRefused(method, code=0, message=str(error)[:300])
    raw = error.get("data")
    if isinstance(raw, Mapping):
        raw = raw.get("data")
    data = bytes(HexBytes(raw)) if isinstance(raw, str) and raw.startswith("0x") else b""
    return NodeRefused(method, code=int(error.get("code") or 0), message=str(error.get("message"))[:300], data=data)


def _as_revert(refused: NodeRefused, call: Call[Any]) -> Exception:
    """A refusal that carries revert data, or says "revert", is the contract's; any other the node's."""
    if refused.data or "revert" in refused.message.lower():
        return CallReverted(call.function.name, revert=decode_revert(refused.data))
    return refused
