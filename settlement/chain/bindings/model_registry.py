"""Calls of the ModelRegistry contract; what they do is told in ModelRegistry.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.bindings.structs import Model
from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class ModelRegistry(Contract):
    """A deployed ModelRegistry; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "acceptOwnership": FunctionSpec("acceptOwnership", (), ()),
        "addTrustedModel": FunctionSpec("addTrustedModel", ("string", "string", "bytes32"), ("bytes32",)),
        "getAllModels": FunctionSpec("getAllModels", (), ("bytes32[]",)),
        "getModel": FunctionSpec("getModel", ("bytes32",), ("(string,string,bytes32,bool,uint256)",)),
        "getModelId": FunctionSpec("getModelId", ("string", "string"), ("bytes32",)),
        "isModelApproved": FunctionSpec("isModelApproved", ("bytes32",), ("bool",)),
        "owner": FunctionSpec("owner", (), ("address",)),
        "pendingOwner": FunctionSpec("pendingOwner", (), ("address",)),
        "renounceOwnership": FunctionSpec("renounceOwnership", (), ()),
        "setModelActive": FunctionSpec("setModelActive", ("bytes32", "bool"), ()),
        "transferOwnership": FunctionSpec("transferOwnership", ("address",), ()),
    }

    def accept_ownership(self) -> Call[None]:
        return self._call("acceptOwnership", (), nothing)

    def add_trusted_model(self, *, repo: str, file: str, sha256_hash: bytes) -> Call[bytes]:
        return self._call("addTrustedModel", (repo, file, sha256_hash), single)

    def get_all_models(self) -> Call[tuple[bytes, ...]]:
        return self._call("getAllModels", (), single)

    def get_model(self, model_id: bytes) -> Call[Model]:
        return self._call("getModel", (model_id,), lambda values: Model.from_values(values[0]))

    def get_model_id(self, *, repo: str, file: str) -> Call[bytes]:
        return self._call("getModelId", (repo, file), single)

    def is_model_approved(self, model_id: bytes) -> Call[bool]:
        return self._call("isModelApproved", (model_id,), single)

    def owner(self) -> Call[ChecksumAddress]:
        return self._call("owner", (), single)

    def pending_owner(self) -> Call[ChecksumAddress]:
        return self._call("pendingOwner", (), single)

    def renounce_ownership(self) -> Call[None]:
        return self._call("renounceOwnership", (), nothing)

    def set_model_active(self, *, model_id: bytes, active: bool) -> Call[None]:
        return self._call("setModelActive", (model_id, active), nothing)

    def transfer_ownership(self, new_owner: ChecksumAddress) -> Call[None]:
        return self._call("transferOwnership", (new_owner,), nothing)
