"""What a contract call, event or error is in Python, and the artifacts they come from. Guarantees that
selectors and topics are computed from signatures, that calls encode and answers decode to typed values, and
that an answer which does not fit is a `CodecError`. Does no I/O with a chain: a `Call` is handed to a
client. The typed contracts themselves are generated into `bindings`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from settlement.chain.addresses import to_checksum_address

ARTIFACTS_DIR = Path(__file__).resolve().parent.parent / "contracts" / "abi"

T = TypeVar("T")
EventT = TypeVar("EventT", bound="ContractEvent")
EventT_co = TypeVar("EventT_co", bound="ContractEvent", covariant=True)


class CodecError(Exception):
    """Bytes and types do not fit: a wrong argument, a foreign log, or an address without our contract."""


@lru_cache(maxsize=1024)
def _hash_of(signature: str) -> bytes:
    return keccak(text=signature)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function of the ABI: canonical input and output types."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def signature(self) -> str:
        """E.g. `withdraw(uint256,address)`."""
        return f"{self.name}({','.join(self.inputs)})"

    @property
    def selector(self) -> bytes:
        """The first 4 bytes of the signature's keccak256."""
        return _hash_of(self.signature)[:4]


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """A custom error of the ABI."""

    name: str
    inputs: tuple[str, ...]

    @property
    def signature(self) -> str:
        """E.g. `TooFewTokens(uint256,uint256)`."""
        return f"{self.name}({','.join(self.inputs)})"

    @property
    def selector(self) -> bytes:
        """The first 4 bytes of the signature's keccak256."""
        return _hash_of(self.signature)[:4]


@dataclass(frozen=True, slots=True)
class EventSpec:
    """An event of the ABI; `indexed` tells for each input whether it is a topic."""

    name: str
    inputs: tuple[str, ...]
    indexed: tuple[bool, ...]

    @property
    def signature(self) -> str:
        """E.g. `ProofOfWork(uint256,address,uint256,bytes32)`."""
        return f"{self.name}({','.join(self.inputs)})"

    @property
    def topic(self) -> bytes:
        """The 32 bytes of the signature's keccak256."""
        return _hash_of(self.signature)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call of a function, read or sent: where to, its calldata, and how its answer decodes."""

    to: ChecksumAddress
    data: bytes
    value: int
    """wei sent along"""
    function: FunctionSpec
    decoder: Callable[[Sequence[Any]], T]

    def decode(self, answer: bytes) -> T:
        """The typed answer of an `eth_call`; raises CodecError, above all where no contract answered."""
        return self.decoder(decode_values(self.function.outputs, answer))


@dataclass(frozen=True, slots=True)
class EventLog(Generic[EventT_co]):
    """A decoded event and where in the chain it stands."""

    event: EventT_co
    address: ChecksumAddress
    block_number: int
    block_hash: bytes
    transaction_hash: bytes
    log_index: int


class ContractEvent:
    """Base of the generated events."""

    __slots__ = ()
    SPEC: ClassVar[EventSpec]
    topic: ClassVar[bytes]

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Self:
        """The event from its values, in the order of the ABI."""
        return cls(*values)

    @classmethod
    def decode(cls, log: Mapping[str, Any]) -> EventLog[Self]:
        """A log of this event, as web3 or plain JSON-RPC gives it; raises CodecError for any other log."""
        return EventLog(
            event=cls.from_values(_event_values(cls.SPEC, log)),
            address=to_checksum_address(log["address"]),
            block_number=_number(log["blockNumber"]),
            block_hash=bytes(HexBytes(log["blockHash"])),
            transaction_hash=bytes(HexBytes(log["transactionHash"])),
            log_index=_number(log["logIndex"]),
        )


class ContractRefusal:
    """Base of the generated custom errors, which are values to inspect and not exceptions."""

    __slots__ = ()
    SPEC: ClassVar[ErrorSpec]
    SELECTOR: ClassVar[bytes]

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Self:
        """The error from its values, in the order of the ABI."""
        return cls(*values)


class Contract:
    """Base of the generated contracts: a deployed address and what can be called there."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]]

    def __init__(self, address: str) -> None:
        self.address: ChecksumAddress = to_checksum_address(address)

    def _call(
        self, name: str, arguments: Sequence[Any], decoder: Callable[[Sequence[Any]], T], *, value: int = 0
    ) -> Call[T]:
        function = self.FUNCTIONS[name]
        data = function.selector + encode_values(function.inputs, arguments)
        return Call(to=self.address, data=data, value=value, function=function, decoder=decoder)


def encode_values(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """ABI encoding; raises CodecError for a value out of its type's range."""
    try:
        return abi_encode(types, values)
    except (EncodingError, TypeError) as problem:
        raise CodecError(f"cannot encode {list(types)}: {problem}") from problem


def decode_values(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """ABI decoding, with checksummed addresses and tuples for arrays; raises CodecError."""
    try:
        values = abi_decode(types, data)
    except (DecodingError, OverflowError) as problem:
        raise CodecError(f"cannot decode {list(types)} from {len(data)} bytes: {problem}") from problem
    return tuple(_clean(kind, value) for kind, value in zip(types, values, strict=True))


def decode_log(
    log: Mapping[str, Any], *, events: Mapping[bytes, type[ContractEvent]]
) -> EventLog[ContractEvent] | None:
    """A log as the event of `events` (by topic) that it is; None for one of another kind."""
    topics = log["topics"]
    kind = events.get(bytes(HexBytes(topics[0]))) if topics else None
    return None if kind is None else kind.decode(log)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: its ABI and the code that deploys it."""

    name: str
    abi: tuple[Mapping[str, Any], ...]
    bytecode: bytes
    runtime_size: int
    runtime_hash: bytes
    """keccak256 of the deployed code with every immutable set to zero"""
    immutables: tuple[tuple[int, int], ...]
    """(start, length) of the immutables in the deployed code"""

    def deployment_data(self, *arguments: Any) -> bytes:
        """The data of the transaction that deploys the contract; raises CodecError on unfit arguments."""
        constructors = [entry for entry in self.abi if entry["type"] == "constructor"]
        types = [entry["type"] for entry in constructors[0]["inputs"]] if constructors else []
        return self.bytecode + encode_values(types, arguments)

    def matches(self, code: bytes) -> bool:
        """Whether deployed code is this contract's, whatever its immutables."""
        masked = bytearray(code)
        for start, length in self.immutables:
            masked[start : start + length] = bytes(length)
        return len(code) == self.runtime_size and keccak(bytes(masked)) == self.runtime_hash


def load_artifact(name: str, *, folder: Path = ARTIFACTS_DIR) -> Artifact:
    """A committed artifact by contract name; raises FileNotFoundError for an unknown one."""
    stored = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Artifact(
        name=stored["contractName"],
        abi=tuple(stored["abi"]),
        bytecode=bytes(HexBytes(stored["bytecode"])),
        runtime_size=stored["deployedBytecodeSize"],
        runtime_hash=bytes(HexBytes(stored["deployedBytecodeHash"])),
        immutables=tuple((start, length) for start, length in stored["immutables"]),
    )


@lru_cache(maxsize=1)
def abi_hash() -> str:
    """sha256 (hex) over all committed ABIs, to tell which interface a node speaks."""
    digest = hashlib.sha256()
    for path in sorted(ARTIFACTS_DIR.glob("*.json")):
        abi = json.loads(path.read_text(encoding="utf-8"))["abi"]
        digest.update(f"{path.stem}:{json.dumps(abi, sort_keys=True, separators=(',', ':'))}\n".encode())
    return digest.hexdigest()


def nothing(values: Sequence[Any]) -> None:
    """Decodes the answer of a function without one."""


def single(values: Sequence[Any]) -> Any:
    """Decodes a single answer; the generated bindings know its type."""
    return values[0]


def _event_values(spec: EventSpec, log: Mapping[str, Any]) -> list[Any]:
    topics = [bytes(HexBytes(topic)) for topic in log["topics"]]
    if len(topics) != 1 + sum(spec.indexed) or topics[0] != spec.topic:
        raise CodecError(f"the log is no {spec.signature}")
    inputs = list(zip(spec.inputs, spec.indexed, strict=True))
    data = decode_values([kind for kind, indexed in inputs if not indexed], bytes(HexBytes(log["data"])))
    plain = iter(data)
    keyed = iter(topics[1:])
    return [decode_values([kind], next(keyed))[0] if indexed else next(plain) for kind, indexed in inputs]


def _clean(kind: str, value: Any) -> Any:
    if kind.endswith("]"):
        element = kind[: kind.rindex("[")]
        return tuple(_clean(element, item) for item in value)
    if kind == "address":
        return to_checksum_address(value)
    return value


def _number(value: Any) -> int:
    return int(value, 16) if isinstance(value, str) else int(value)
