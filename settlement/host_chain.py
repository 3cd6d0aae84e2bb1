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
from settlement.chain.marketplace import Marketplace
from settlement.chain.marketplaces import marketplace_of
from settlement.chain.signer import (
    LocalSigner,
    Signer,
    SigningRules,
    account_of_key,
    account_of_keystore,
    host_rules,
)
from settlement.txmanager.limits import Limits
from settlement.txmanager.manager import TransactionManager

_OVERRIDES = {
    "JobMarketplace": "job_marketplace",
    "HostEarnings": "host_earnings",
    "ProofSystem": "proof_system",
    "NodeRegistry": "node_registry",
    "ModelRegistry": "model_registry",
    "USDC": "usdc",
}


# The transaction manager keeps the daily budget; the signer, which sees neither receipts nor what became
# of a signature, stops a manager gone wrong well before the account is empty.
_SIGNED_TO_SPENT = 4


class NoDeployment(Exception):
    """There are no contract addresses for the configured chain. Says where they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChain:
    """Everything that settlement needs of the chain. ``signer`` is ``None`` on a node that only tracks."""

    client: ChainClient
    deployment: Deployment
    marketplace: Marketplace
    signer: Signer | None
    limits: Limits

    @property
    def key(self) -> str:
        """Names the deployment in database rows; differs for two embedded chains with equal addresses."""
        key = f"{self.deployment.chain_id}:{self.deployment.job_marketplace.lower()}"
        return f"{key}:{self.deployment.block_hash[:18]}" if self.deployment.block_hash else key

    @property
    def host(self) -> str | None:
        """The host's address in lower case."""
        return None if self.signer is None else self.signer.address

    @property
    def manager(self) -> TransactionManager | None:
        """Sends this host's transactions; ``None`` on a node that only tracks."""
        if self.signer is None:
            return None
        return TransactionManager(client=self.client, signer=self.signer, limits=self.limits)


@lru_cache(maxsize=1)
def host_chain() -> HostChain:
    """The configured chain. Raises ``NoDeployment``, ``UnsupportedGeneration`` or ``KeyUnusable``."""
    environment = settings.ENVIRONMENT
    deployment = configured_deployment()
    account = host_account()
    signer = None
    if account is not None:
        rules = signing_rules(
            deployment, chain_id=environment.chain_id, limits=environment.limits, sweep_to=environment.sweep_to
        )
        signer = LocalSigner(account, rules=rules)
    return HostChain(
        client=chain_client(),
        deployment=deployment,
        marketplace=marketplace_of(deployment),
        signer=signer,
        limits=environment.limits,
    )


def signing_rules(
    deployment: Deployment, *, chain_id: int, limits: Limits, sweep_to: str | None = None
) -> SigningRules:
    """What the host's key may sign with this deployment."""
    return host_rules(
        chain_id=chain_id,
        marketplace=deployment.job_marketplace,
        host_earnings=deployment.host_earnings,
        node_registry=deployment.node_registry,
        usdc=deployment.usdc,
        sweep_to=sweep_to,
        max_fee_per_gas=limits.max_fee_per_gas,
        max_cost=limits.max_cost,
        daily_cost=_SIGNED_TO_SPENT * limits.daily_budget,
    )


def chain_client() -> ChainClient:
    """The client of the configured chain: one for the process, which remembers how its nodes fare."""
    environment = settings.ENVIRONMENT
    return _client(environment.rpc_urls, environment.chain_id, environment.rpc_timeout_seconds)


@lru_cache(maxsize=4)
def _client(urls: tuple[str, ...], chain_id: int, timeout_seconds: int) -> ChainClient:
    return ChainClient(urls, chain_id=chain_id, timeout_seconds=timeout_seconds)


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
    # A chain may hold marketplaces of several generations; the other ones are named for theirs.
    named = DEPLOYMENTS_DIR / f"{environment.chain_id}-{environment.contract_generation}.json"
    if environment.contract_generation is not None and named.exists():
        return named
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
