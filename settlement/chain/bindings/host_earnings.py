"""Calls of the HostEarnings contract; what they do is told in HostEarnings.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class HostEarnings(Contract):
    """A deployed HostEarnings; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "acceptOwnership": FunctionSpec("acceptOwnership", (), ()),
        "authorizedCallers": FunctionSpec("authorizedCallers", ("address",), ("bool",)),
        "creditEarnings": FunctionSpec("creditEarnings", ("address", "uint256", "address"), ()),
        "getBalance": FunctionSpec("getBalance", ("address", "address"), ("uint256",)),
        "getBalances": FunctionSpec("getBalances", ("address", "address[]"), ("uint256[]",)),
        "outstanding": FunctionSpec("outstanding", ("address",), ("uint256",)),
        "owner": FunctionSpec("owner", (), ("address",)),
        "pendingOwner": FunctionSpec("pendingOwner", (), ("address",)),
        "renounceOwnership": FunctionSpec("renounceOwnership", (), ()),
        "setAuthorizedCaller": FunctionSpec("setAuthorizedCaller", ("address", "bool"), ()),
        "transferOwnership": FunctionSpec("transferOwnership", ("address",), ()),
        "withdraw": FunctionSpec("withdraw", ("uint256", "address"), ()),
        "withdrawAll": FunctionSpec("withdrawAll", ("address",), ()),
        "withdrawMultiple": FunctionSpec("withdrawMultiple", ("address[]",), ()),
    }

    def accept_ownership(self) -> Call[None]:
        return self._call("acceptOwnership", (), nothing)

    def authorized_callers(self, caller: ChecksumAddress) -> Call[bool]:
        return self._call("authorizedCallers", (caller,), single)

    def credit_earnings(self, *, host: ChecksumAddress, amount: int, token: ChecksumAddress, value: int) -> Call[None]:
        return self._call("creditEarnings", (host, amount, token), nothing, value=value)

    def get_balance(self, *, host: ChecksumAddress, token: ChecksumAddress) -> Call[int]:
        return self._call("getBalance", (host, token), single)

    def get_balances(self, *, host: ChecksumAddress, tokens: Sequence[ChecksumAddress]) -> Call[tuple[int, ...]]:
        return self._call("getBalances", (host, tokens), single)

    def outstanding(self, token: ChecksumAddress) -> Call[int]:
        return self._call("outstanding", (token,), single)

    def owner(self) -> Call[ChecksumAddress]:
        return self._call("owner", (), single)

    def pending_owner(self) -> Call[ChecksumAddress]:
        return self._call("pendingOwner", (), single)

    def renounce_ownership(self) -> Call[None]:
        return self._call("renounceOwnership", (), nothing)

    def set_authorized_caller(self, *, caller: ChecksumAddress, authorized: bool) -> Call[None]:
        return self._call("setAuthorizedCaller", (caller, authorized), nothing)

    def transfer_ownership(self, new_owner: ChecksumAddress) -> Call[None]:
        return self._call("transferOwnership", (new_owner,), nothing)

    def withdraw(self, *, amount: int, token: ChecksumAddress) -> Call[None]:
        return self._call("withdraw", (amount, token), nothing)

    def withdraw_all(self, token: ChecksumAddress) -> Call[None]:
        return self._call("withdrawAll", (token,), nothing)

    def withdraw_multiple(self, tokens: Sequence[ChecksumAddress]) -> Call[None]:
        return self._call("withdrawMultiple", (tokens,), nothing)
