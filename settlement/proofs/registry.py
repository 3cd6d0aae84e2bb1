"""Which provers there are, and which of them the proof system on the chain accepts."""

from __future__ import annotations

from settlement.chain.bindings import ProofSystem
from settlement.chain.client import ChainClient
from settlement.chain.deployment import Deployment
from settlement.proofs.mock import MockProver
from settlement.proofs.prover import Prover, ProverUnavailable

# In order of preference.
PROVERS: tuple[Prover, ...] = (MockProver(),)


def accepted_prover(client: ChainClient, deployment: Deployment) -> Prover:
    """The first prover whose selector the chain accepts. Raises ``ProverUnavailable``."""
    if deployment.proof_system is None:
        raise ProverUnavailable("the deployment names no ProofSystem contract (CONTRACT_PROOF_SYSTEM)")
    contract = ProofSystem(deployment.proof_system)
    for prover in PROVERS:
        if client.call(contract.has_verifier(prover.selector)):
            prover.probe()
            return prover
    known = ", ".join(prover.name for prover in PROVERS)
    raise ProverUnavailable(
        f"the proof system at {contract.address} accepts none of this node's provers ({known}); "
        "its owner must list a verifier for one of them"
    )
