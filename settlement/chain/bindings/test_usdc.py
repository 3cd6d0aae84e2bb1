"""Calls of the TestUSDC contract; what they do is told in TestUSDC.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class TestUSDC(Contract):
    """A deployed TestUSDC; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "allowance": FunctionSpec("allowance", ("address", "address"), ("uint256",)),
        "approve": FunctionSpec("approve", ("address", "uint256"), ("bool",)),
        "balanceOf": FunctionSpec("balanceOf", ("address",), ("uint256",)),
        "decimals": FunctionSpec("decimals", (), ("uint8",)),
        "mint": FunctionSpec("mint", ("address", "uint256"), ()),
        "name": FunctionSpec("name", (), ("string",)),
        "symbol": FunctionSpec("symbol", (), ("string",)),
        "totalSupply": FunctionSpec("totalSupply", (), ("uint256",)),
        "transfer": FunctionSpec("transfer", ("address", "uint256"), ("bool",)),
        "transferFrom": FunctionSpec("transferFrom", ("address", "address", "uint256"), ("bool",)),
    }

    def allowance(self, *, owner: ChecksumAddress, spender: ChecksumAddress) -> Call[int]:
        return self._call("allowance", (owner, spender), single)

    def approve(self, *, spender: ChecksumAddress, value: int) -> Call[bool]:
        return self._call("approve", (spender, value), single)

    def balance_of(self, account: ChecksumAddress) -> Call[int]:
        return self._call("balanceOf", (account,), single)

    def decimals(self) -> Call[int]:
        return self._call("decimals", (), single)

    def mint(self, *, to: ChecksumAddress, amount: int) -> Call[None]:
        return self._call("mint", (to, amount), nothing)

    def name(self) -> Call[str]:
        return self._call("name", (), single)

    def symbol(self) -> Call[str]:
        return self._call("symbol", (), single)

    def total_supply(self) -> Call[int]:
        return self._call("totalSupply", (), single)

    def transfer(self, *, to: ChecksumAddress, value: int) -> Call[bool]:
        return self._call("transfer", (to, value), single)

    def transfer_from(self, *, from_: ChecksumAddress, to: ChecksumAddress, value: int) -> Call[bool]:
        return self._call("transferFrom", (from_, to, value), single)
