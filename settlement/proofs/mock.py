"""The mock prover: the JSON note of the existing node, behind the mock verifier's selector.

For testing only: it shows nothing to anybody, and a chain with value must not accept it. The note is
derived from the checkpoint alone, so proving the same checkpoint again gives the same bytes.
"""

from __future__ import annotations

import json

from eth_utils.crypto import keccak

from settlement.proofs.prover import Proof, ProofRefused
from settlement.proofs.witness import Witness

SELECTOR = keccak(text="fabstir.mock.v1")[:4]


class MockProver:
    """Implements ``Prover``."""

    name = "mock"
    selector = SELECTOR

    def probe(self) -> str:
        """Needs nothing, so it is always there."""
        return "mock proofs: for testing only"

    def prove(self, witness: Witness) -> Proof:
        """The note, with what makes it unique across jobs, checkpoints and deployments."""
        note = {
            "timestamp": witness.timestamp_ms,
            "tokensUsed": witness.tokens_claimed,
            "hostAddress": witness.host,
            "jobId": witness.job_id,
            "mock": True,
            "chainId": witness.chain_id,
            "marketplace": witness.marketplace,
            "checkpoint": witness.checkpoint_index,
            "fromToken": witness.from_token,
        }
        return Proof(data=SELECTOR + json.dumps(note, sort_keys=True, separators=(",", ":")).encode())

    def verify(self, proof: Proof, witness: Witness) -> None:
        """Raises ``ProofRefused`` unless the note is the witness's own."""
        if proof != self.prove(witness):
            raise ProofRefused("the mock note does not state this checkpoint")
