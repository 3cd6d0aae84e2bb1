"""The protocol that every prover implements, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from eth_utils.crypto import keccak

from settlement.proofs.witness import Witness


class ProverUnavailable(Exception):
    """Something the prover needs is not here. Says what, and how to get it."""


class ProofRefused(Exception):
    """A proof does not verify. It must not be submitted."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The bytes for the chain: 4-byte verifier selector, then that verifier's own body."""

    data: bytes

    @property
    def hash(self) -> str:
        """keccak-256 of the bytes, as the marketplace's event states it."""
        return "0x" + keccak(self.data).hex()


class Prover(Protocol):
    """Turns a witness into proof bytes."""

    name: str
    selector: bytes

    def probe(self) -> str:
        """One line on what it will prove with. Raises ``ProverUnavailable``."""
        ...

    def prove(self, witness: Witness) -> Proof:
        """Raises ``ProverUnavailable``."""
        ...

    def verify(self, proof: Proof, witness: Witness) -> None:
        """Check before anything is submitted. Raises ``ProofRefused``."""
        ...
