"""The chain as this host is set up for it: client, deployment, marketplace adapter and key in one value.

Guarantees that all of the node settles with one deployment, chosen by the environment. Reads files
and keys; asks the chain for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from settlement.chain.client import ChainClient
from settlement.chain.deployment import DEPLOYMENTS_DIR, Deployment, load_deployment
from settlement.chain.marketplaces import Marketplace, marketplace_of
from settlement.chain.signer import LocalSigner, Signer, account_of_key, account_of_keystore

_OVERRIDES = {
    "JobMarketplace": "job_marketplace",
    "HostEarnings": "host_earnings",
    "ProofSystem": "proof_system",
    "NodeRegistry": "node_registry",
    "ModelRegistry": "model_registry",
    "USDC": "usdc",
}


class NoDeployment(Exception):
    """There are no contract addresses for the configured chain. Says where they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChain:
    """Everything that settlement needs of the chain. ``signer`` is ``None`` on a node that only tracks."""

    client: ChainClient
    deployment: Deployment
    marketplace: Marketplace
    signer: Signer | None
    confirmations: int
    max_fee_per_gas: int

    @property
    def key(self) -> str:
        """Names the deployment in database rows; differs for two embedded chains with equal addresses."""
        key = f"{self.deployment.chain_id}:{self.deployment.job_marketplace.lower()}"
        return f"{key}:{self.deployment.block_hash[:18]}" if self.deployment.block_hash else key

    @property
    def host(self) -> str | None:
        """The host's address in lower case."""
        return None if self.signer is None else self.signer.address


@lru_cache(maxsize=1)
def host_chain() -> HostChain:
    """The configured chain. Raises ``NoDeployment``, ``UnsupportedGeneration`` or ``KeyUnusable``."""
    environment = settings.ENVIRONMENT
    deployment = configured_deployment()
    account = host_account()
    signer = None
    if account is not None:
        contracts = (deployment.job_marketplace, deployment.host_earnings, deployment.node_registry)
        signer = LocalSigner(
            account,
            chain_id=environment.chain_id,
            contracts=[address for address in contracts if address is not None],
            max_fee_per_gas=environment.max_fee_per_gas_wei,
        )
    return HostChain(
        client=chain_client(),
        deployment=deployment,
        marketplace=marketplace_of(deployment),
        signer=signer,
        confirmations=environment.confirmations,
        max_fee_per_gas=environment.max_fee_per_gas_wei,
    )


def chain_client() -> ChainClient:
    """A client of the configured chain."""
    environment = settings.ENVIRONMENT
    return ChainClient(environment.rpc_urls, chain_id=environment.chain_id)


def host_account() -> LocalAccount | None:
    """The host's account, or ``None`` if it has no key. Raises ``KeyUnusable``."""
    environment = settings.ENVIRONMENT
    if environment.host_keystore is not None and environment.host_keystore_password_file is not None:
        return account_of_keystore(environment.host_keystore, password_file=environment.host_keystore_password_file)
    if environment.host_private_key is not None:
        return account_of_key(environment.host_private_key)
    if environment.embedded_chain and environment.host_key_file.exists():
        return account_of_key(environment.host_key_file.read_text())
    return None


def deployment_file() -> Path:
    """Where the configured chain's addresses are kept."""
    environment = settings.ENVIRONMENT
    shipped = DEPLOYMENTS_DIR / f"{environment.chain_id}.json"
    return shipped if shipped.exists() else environment.local_deployment_file


def configured_deployment() -> Deployment:
    """The deployment of the configured chain with the environment's overrides. Raises ``NoDeployment``."""
    environment = settings.ENVIRONMENT
    overrides: dict[str, Any] = {
        _OVERRIDES[name]: to_checksum_address(address) for name, address in environment.contract_overrides.items()
    }
    path = deployment_file()
    try:
        deployment = load_deployment(path)
    except FileNotFoundError:
        raise NoDeployment(
            f"No contract addresses for chain {environment.chain_id}: {path} does not exist. On the embedded "
            "chain `make run` deploys them; on any other set the CONTRACT_* variables or add the file."
        ) from None
    if environment.contract_generation is not None:
        deployment = replace(deployment, generation=environment.contract_generation)
    return replace(deployment, **overrides)
