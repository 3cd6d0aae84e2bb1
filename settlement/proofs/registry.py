"""Which provers there are, and which of them the proof system on the chain accepts."""

from __future__ import annotations

from settlement.chain.client import ChainClient
from settlement.chain.marketplace import Marketplace
from settlement.proofs.mock import MockProver
from settlement.proofs.prover import Prover, ProverUnavailable

# In order of preference.
PROVERS: tuple[Prover, ...] = (MockProver(),)


def accepted_prover(client: ChainClient, marketplace: Marketplace) -> Prover:
    """The first prover whose selector the chain accepts. Raises ``ProverUnavailable``."""
    for prover in PROVERS:
        if marketplace.accepts_prover(client, selector=prover.selector):
            prover.probe()
            return prover
    known = ", ".join(prover.name for prover in PROVERS)
    raise ProverUnavailable(
        f"the marketplace accepts none of this node's provers ({known}); the owner of its proof system must list "
        "a verifier for one of them"
    )
