"""What the contracts in use say about themselves, read for operators to look at."""

from __future__ import annotations

from django.utils import timezone
from eth_utils.crypto import keccak

from settlement.chain.deployment import addresses
from settlement.host_chain import HostChain
from settlement.models import ContractDeployment
from settlement.proofs.registry import PROVERS


def refresh(chain: HostChain) -> int:
    """Read every contract of the deployment again; returns how many have code."""
    found = 0
    terms = chain.marketplace.terms(chain.client)
    for name, address in addresses(chain.deployment).items():
        code = chain.client.code(address)
        found += bool(code)
        row: dict[str, object] = {
            "chain_id": chain.deployment.chain_id,
            "generation": chain.deployment.generation,
            "address": address,
            "code_hash": "0x" + keccak(code).hex() if code else "",
            "checked_at": timezone.now(),
        }
        if name == "job_marketplace":
            row["fee_basis_points"] = terms.fee_basis_points
            row["claimants"] = "the host that a job names, and nobody else"
            row["settings"] = {
                "treasury": terms.treasury,
                "dispute_window_seconds": int(terms.dispute_window.total_seconds()),
                "expected_tokens_per_second": terms.tokens_per_second,
                "minimum_claim_tokens": terms.minimum_claim,
            }
        elif name == "proof_system" and code:
            row["settings"] = {
                f"accepts {prover.name} proofs": chain.marketplace.accepts_prover(
                    chain.client, selector=prover.selector
                )
                for prover in PROVERS
            }
        ContractDeployment.objects.update_or_create(deployment=chain.key, name=name, defaults=row)
    return found
