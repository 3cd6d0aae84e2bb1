"""Calls of the ProofSystem contract; what they do is told in ProofSystem.sol.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from eth_typing import ChecksumAddress

from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single


class ProofSystem(Contract):
    """A deployed ProofSystem; amounts in smallest units."""

    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {
        "acceptOwnership": FunctionSpec("acceptOwnership", (), ()),
        "hasVerifier": FunctionSpec("hasVerifier", ("bytes4",), ("bool",)),
        "listVerifier": FunctionSpec("listVerifier", ("address",), ()),
        "marketplaces": FunctionSpec("marketplaces", ("address",), ("bool",)),
        "owner": FunctionSpec("owner", (), ("address",)),
        "pendingOwner": FunctionSpec("pendingOwner", (), ("address",)),
        "renounceOwnership": FunctionSpec("renounceOwnership", (), ()),
        "setMarketplace": FunctionSpec("setMarketplace", ("address", "bool"), ()),
        "transferOwnership": FunctionSpec("transferOwnership", ("address",), ()),
        "unlistVerifier": FunctionSpec("unlistVerifier", ("bytes4",), ()),
        "verifierOf": FunctionSpec("verifierOf", ("bytes4",), ("address",)),
        "verifyClaim": FunctionSpec("verifyClaim", ("uint256", "address", "uint256", "uint256", "bytes"), ("bool",)),
    }

    def accept_ownership(self) -> Call[None]:
        return self._call("acceptOwnership", (), nothing)

    def has_verifier(self, selector: bytes) -> Call[bool]:
        return self._call("hasVerifier", (selector,), single)

    def list_verifier(self, verifier: ChecksumAddress) -> Call[None]:
        return self._call("listVerifier", (verifier,), nothing)

    def marketplaces(self, marketplace: ChecksumAddress) -> Call[bool]:
        return self._call("marketplaces", (marketplace,), single)

    def owner(self) -> Call[ChecksumAddress]:
        return self._call("owner", (), single)

    def pending_owner(self) -> Call[ChecksumAddress]:
        return self._call("pendingOwner", (), single)

    def renounce_ownership(self) -> Call[None]:
        return self._call("renounceOwnership", (), nothing)

    def set_marketplace(self, *, marketplace: ChecksumAddress, authorized: bool) -> Call[None]:
        return self._call("setMarketplace", (marketplace, authorized), nothing)

    def transfer_ownership(self, new_owner: ChecksumAddress) -> Call[None]:
        return self._call("transferOwnership", (new_owner,), nothing)

    def unlist_verifier(self, selector: bytes) -> Call[None]:
        return self._call("unlistVerifier", (selector,), nothing)

    def verifier_of(self, selector: bytes) -> Call[ChecksumAddress]:
        return self._call("verifierOf", (selector,), single)

    def verify_claim(
        self, *, job_id: int, host: ChecksumAddress, tokens_before: int, tokens_claimed: int, proof: bytes
    ) -> Call[bool]:
        return self._call("verifyClaim", (job_id, host, tokens_before, tokens_claimed, proof), single)
