"""Calls of the NodeRegistry contract; what they do is told in NodeRegistry.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.bindings.structs import NodeInfo
from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class NodeRegistry(Contract):
    """A deployed NodeRegistry; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "getNodeFullInfo": FunctionSpec(
            "getNodeFullInfo",
            ("address",),
            ("address", "uint256", "bool", "string", "string", "bytes32[]", "uint256", "uint256"),
        ),
        "isActiveNode": FunctionSpec("isActiveNode", ("address",), ("bool",)),
        "isRegisteredNode": FunctionSpec("isRegisteredNode", ("address",), ("bool",)),
        "minStake": FunctionSpec("minStake", (), ("uint256",)),
        "minimumPrice": FunctionSpec("minimumPrice", ("address", "address"), ("uint256",)),
        "modelRegistry": FunctionSpec("modelRegistry", (), ("address",)),
        "nodeCount": FunctionSpec("nodeCount", (), ("uint256",)),
        "nodePage": FunctionSpec("nodePage", ("uint256", "uint256"), ("address[]",)),
        "nodeSupportsModel": FunctionSpec("nodeSupportsModel", ("address", "bytes32"), ("bool",)),
        "registerNode": FunctionSpec("registerNode", ("string", "string", "bytes32[]", "uint256", "uint256"), ()),
        "setActive": FunctionSpec("setActive", ("bool",), ()),
        "stake": FunctionSpec("stake", (), ()),
        "unregisterNode": FunctionSpec("unregisterNode", (), ()),
        "updateApiUrl": FunctionSpec("updateApiUrl", ("string",), ()),
        "updateMetadata": FunctionSpec("updateMetadata", ("string",), ()),
        "updatePricingNative": FunctionSpec("updatePricingNative", ("uint256",), ()),
        "updatePricingStable": FunctionSpec("updatePricingStable", ("uint256",), ()),
        "updateSupportedModels": FunctionSpec("updateSupportedModels", ("bytes32[]",), ()),
    }

    def get_node_full_info(self, operator: ChecksumAddress) -> Call[NodeInfo]:
        return self._call("getNodeFullInfo", (operator,), NodeInfo.from_values)

    def is_active_node(self, operator: ChecksumAddress) -> Call[bool]:
        return self._call("isActiveNode", (operator,), single)

    def is_registered_node(self, operator: ChecksumAddress) -> Call[bool]:
        return self._call("isRegisteredNode", (operator,), single)

    def min_stake(self) -> Call[int]:
        return self._call("minStake", (), single)

    def minimum_price(self, *, operator: ChecksumAddress, token: ChecksumAddress) -> Call[int]:
        return self._call("minimumPrice", (operator, token), single)

    def model_registry(self) -> Call[ChecksumAddress]:
        return self._call("modelRegistry", (), single)

    def node_count(self) -> Call[int]:
        return self._call("nodeCount", (), single)

    def node_page(self, *, offset: int, limit: int) -> Call[tuple[ChecksumAddress, ...]]:
        return self._call("nodePage", (offset, limit), single)

    def node_supports_model(self, *, operator: ChecksumAddress, model_id: bytes) -> Call[bool]:
        return self._call("nodeSupportsModel", (operator, model_id), single)

    def register_node(
        self,
        *,
        metadata: str,
        api_url: str,
        model_ids: Sequence[bytes],
        min_price_native: int,
        min_price_stable: int,
        value: int,
    ) -> Call[None]:
        return self._call(
            "registerNode", (metadata, api_url, model_ids, min_price_native, min_price_stable), nothing, value=value
        )

    def set_active(self, active: bool) -> Call[None]:
        return self._call("setActive", (active,), nothing)

    def stake(self, value: int) -> Call[None]:
        return self._call("stake", (), nothing, value=value)

    def unregister_node(self) -> Call[None]:
        return self._call("unregisterNode", (), nothing)

    def update_api_url(self, api_url: str) -> Call[None]:
        return self._call("updateApiUrl", (api_url,), nothing)

    def update_metadata(self, metadata: str) -> Call[None]:
        return self._call("updateMetadata", (metadata,), nothing)

    def update_pricing_native(self, min_price_native: int) -> Call[None]:
        return self._call("updatePricingNative", (min_price_native,), nothing)

    def update_pricing_stable(self, min_price_stable: int) -> Call[None]:
        return self._call("updatePricingStable", (min_price_stable,), nothing)

    def update_supported_models(self, model_ids: Sequence[bytes]) -> Call[None]:
        return self._call("updateSupportedModels", (model_ids,), nothing)
