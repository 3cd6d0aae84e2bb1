"""The embedded chain made ready: contracts deployed once, and a host with a funded key of its own.

Everything here is play money on a chain that this node owns: unlocked accounts deploy, and the
host's key is made at first start in a file only the owner can read. Never used on another chain.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3

from nodes.models import ServedModel
from settlement.chain import local
from settlement.chain.bindings import ModelRegistry
from settlement.chain.client import ChainClient
from settlement.chain.deployment import (
    Deployment,
    DeploymentError,
    deploy_local,
    is_deployed,
    load_deployment,
    transact,
)

_HOST_BALANCE_WEI = 100 * 10**18
# Every embedded chain approves this repository name for the models its host serves.
MODEL_REPOSITORY = "fabstir-host"


def make_host_key(path: Path) -> bool:
    """Make the embedded host's key unless it is there. ``True`` if it was made now."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write("0x" + Account.create().key.hex())
    return True


def retire_host_key(path: Path) -> None:
    """Put the key of a chain that is gone aside: its nonces and earnings went with that chain."""
    path.replace(path.with_suffix(f".retired-{int(time.time())}"))


def ensure_contracts(url: str, *, deployment_file: Path, progress: Callable[[str], None]) -> tuple[Deployment, bool]:
    """The embedded chain's deployment, and whether it was made now. Raises ``DeploymentError``."""
    w3 = Web3(HTTPProvider(url, request_kwargs={"timeout": 30}))
    if deployment_file.exists():
        try:
            deployment = load_deployment(deployment_file)
        except DeploymentError as error:
            progress(f"{error}; deploying again")
        else:
            if is_deployed(w3, deployment):
                return deployment, False
            progress("the chain does not hold the recorded contracts; deploying again")
    progress("deploying the contracts")
    deployer, treasury = local.accounts(url)[:2]
    deployment = deploy_local(w3, deployer=deployer, treasury=treasury)
    deployment_file.parent.mkdir(parents=True, exist_ok=True)
    partial = deployment_file.with_suffix(".partial")
    partial.write_text(deployment.to_json())
    partial.replace(deployment_file)
    return deployment, True


def fund_host(url: str, *, host: str) -> None:
    """Give the host play ETH for gas and stake if it is running out of it."""
    client = ChainClient((url,), chain_id=settings.ENVIRONMENT.chain_id)
    if client.balance(host) < _HOST_BALANCE_WEI // 2:
        local.fund(url, address=to_checksum_address(host), wei=_HOST_BALANCE_WEI)


def approve_models(url: str, *, deployment: Deployment) -> list[bytes]:
    """Have the embedded model registry approve what this host serves; returns the model ids."""
    assert deployment.model_registry is not None  # noqa: S101 - deploy_local deploys one
    client = ChainClient((url,), chain_id=deployment.chain_id)
    registry = ModelRegistry(deployment.model_registry)
    w3 = Web3(HTTPProvider(url, request_kwargs={"timeout": 30}))
    owner = local.accounts(url)[0]
    approved = []
    for model in ServedModel.objects.enabled():
        model_id = client.call(registry.get_model_id(repo=MODEL_REPOSITORY, file=model.id))
        if not client.call(registry.is_model_approved(model_id)):
            fingerprint = keccak(text=model.manifest_sha256)
            transact(
                w3,
                registry.add_trusted_model(repo=MODEL_REPOSITORY, file=model.id, sha256_hash=fingerprint),
                sender=owner,
            )
        approved.append(model_id)
    return approved
