"""Calls of the MockVerifier contract; what they do is told in MockVerifier.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from settlement.chain.bindings.structs import Claim
from settlement.chain.contracts import Call, Contract, FunctionSpec, single


class MockVerifier(Contract):
    """A deployed MockVerifier; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "selector": FunctionSpec("selector", (), ("bytes4",)),
        "verifyClaim": FunctionSpec("verifyClaim", ("(address,uint256,address,uint256,uint256)", "bytes"), ("bool",)),
    }

    def selector(self) -> Call[bytes]:
        return self._call("selector", (), single)

    def verify_claim(self, *, arg0: Claim, body: bytes) -> Call[bool]:
        return self._call("verifyClaim", (arg0.to_values(), body), single)
