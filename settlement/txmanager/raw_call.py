"""A stored transaction as a call again, to simulate or estimate it."""

from __future__ import annotations

from typing import Any

from hexbytes import HexBytes

from settlement.chain.addresses import to_checksum_address
from settlement.chain.bindings import SELECTORS
from settlement.chain.contracts import Call, FunctionSpec, nothing
from settlement.models import Transaction


def raw_call(row: Transaction) -> Call[Any]:
    """The call that ``row`` stands for; its answer is not decoded."""
    data = bytes(HexBytes(row.data))
    function = SELECTORS.get(data[:4]) or FunctionSpec(f"0x{data[:4].hex()}", (), ())
    return Call(to=to_checksum_address(row.to), data=data, value=row.value, function=function, decoder=nothing)
