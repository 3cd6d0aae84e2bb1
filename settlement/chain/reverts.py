"""Why a call reverted, as a typed value. Guarantees that revert data of any kind yields a result (a custom
error of our ABIs, a reason string, a panic, nothing, or the unknown bytes kept as they came) and that the
data is found in every web3 exception that carries it. Does not decide whether a revert is permanent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3.exceptions import ContractLogicError, Web3RPCError

from settlement.chain.bindings import ALL_ERRORS
from settlement.chain.contracts import CodecError, ContractRefusal, decode_values

_REASON = keccak(text="Error(string)")[:4]
_PANIC = keccak(text="Panic(uint256)")[:4]
_REASON_IN_WORDS = re.compile(
    r"(?i)revert(?:ed)?(?: with reason string '(?P<quoted>.*)'|(?:: | with reason: )(?P<plain>.+))", re.DOTALL
)
_PANICS = {
    0x01: "assertion failed",
    0x11: "arithmetic overflow",
    0x12: "division by zero",
    0x21: "invalid enum value",
    0x31: "pop of an empty array",
    0x32: "array index out of bounds",
    0x41: "too much memory",
}


@dataclass(frozen=True, slots=True)
class CustomRevert:
    """A custom error of our contracts, with its typed value."""

    error: ContractRefusal

    @property
    def name(self) -> str:
        """E.g. `TooFewTokens`."""
        return self.error.SPEC.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The error's arguments by name."""
        return {field.name: getattr(self.error, field.name) for field in fields(self.error)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        shown = (f"{key}={_shown(value)}" for key, value in self.arguments.items())
        return f"{self.name}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class ReasonRevert:
    """`require(..., "reason")` of an older contract."""

    reason: str

    @property
    def name(self) -> str:
        """The reason itself, which is all there is to go by."""
        return self.reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class PanicRevert:
    """A failure that Solidity itself found."""

    code: int

    @property
    def name(self) -> str:
        """E.g. `Panic(0x11)`."""
        return f"Panic({self.code:#04x})"

    def __str__(self) -> str:
        return f"{self.name}: {_PANICS.get(self.code, 'unknown panic')}"


@dataclass(frozen=True, slots=True)
class UnknownRevert:
    """Revert data that no table of ours explains, verbatim; empty where the contract gave none."""

    data: bytes

    @property
    def name(self) -> str:
        """The selector in hex, or `no data`."""
        return f"0x{self.data[:4].hex()}" if self.data else "no data"

    def __str__(self) -> str:
        return f"reverted with 0x{self.data.hex()}" if self.data else "reverted without data"


Revert = CustomRevert | ReasonRevert | PanicRevert | UnknownRevert


def decode_revert(data: bytes) -> Revert:
    """The meaning of revert data; never raises."""
    selector, body = data[:4], data[4:]
    known = ALL_ERRORS.get(selector)
    try:
        if known is not None:
            return CustomRevert(known.from_values(decode_values(known.SPEC.inputs, body)))
        if selector == _REASON:
            return ReasonRevert(decode_values(("string",), body)[0])
        if selector == _PANIC:
            return PanicRevert(decode_values(("uint256",), body)[0])
    except (CodecError, UnicodeDecodeError):
        return UnknownRevert(data)
    return UnknownRevert(data)


def revert_in_words(data: bytes, message: str) -> Revert:
    """The meaning of revert data or, where the node gave none, of the reason in its message; never raises."""
    if data:
        return decode_revert(data)
    reason = _reason_in(message)
    return ReasonRevert(reason) if reason else UnknownRevert(b"")


def revert_of(problem: BaseException) -> Revert | None:
    """The revert that a web3 exception reports; None for one that reports no revert."""
    if isinstance(problem, ContractLogicError):
        data = _bytes(problem.data)
        if data is not None:
            return decode_revert(data)
        reason = _reason_in(problem.message)
        return ReasonRevert(reason) if reason else UnknownRevert(b"")
    if isinstance(problem, Web3RPCError):
        return _revert_in_response(problem.rpc_response)
    return None


def _revert_in_response(response: Any) -> Revert | None:
    error = response.get("error") if isinstance(response, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    data = _bytes(error.get("data"))
    if data is not None:
        return decode_revert(data)
    message = str(error.get("message", ""))
    if "revert" not in message.lower():
        return None
    reason = _reason_in(message)
    return ReasonRevert(reason) if reason else UnknownRevert(b"")


def _bytes(data: Any) -> bytes | None:
    """Revert data as nodes and web3 wrap it: hex, or hex in an object."""
    if isinstance(data, Mapping):
        data = data.get("data") or data.get("result")
    if isinstance(data, bytes):
        return data
    if not isinstance(data, str) or not data.startswith("0x"):
        return None
    try:
        return bytes(HexBytes(data))
    except ValueError:
        return None


def _reason_in(message: str | None) -> str:
    """`execution reverted: reason` and its variants in other clients → reason."""
    found = _REASON_IN_WORDS.search(message or "")
    return (found["quoted"] or found["plain"] or "").strip() if found else ""


def _shown(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
