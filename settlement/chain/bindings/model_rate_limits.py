"""Rows, events and calls of ModelRateLimits; what they mean is told in ModelRateLimits.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from settlement.chain.contracts import Call, Contract, FunctionSpec, single


class ModelRateLimits(Contract):
    """A deployed ModelRateLimits; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "getModelRateLimit": FunctionSpec("getModelRateLimit", ("bytes32",), ("uint256",)),
    }

    def get_model_rate_limit(self, model_id: bytes) -> Call[int]:
        return self._call("getModelRateLimit", (model_id,), single)
