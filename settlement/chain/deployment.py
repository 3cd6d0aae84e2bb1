"""Where the contracts are on a chain: a record with a JSON form, and how the embedded chain gets its own.
Guarantees that `deploy_local` leaves contracts wired to each other and that `is_deployed` compares code,
not only presence, where the code is ours. Does not choose which deployment a node uses, and deploys through
unlocked accounts only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_typing import ChecksumAddress, HexStr
from eth_utils.address import is_address, to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound
from web3.types import TxParams, TxReceipt, Wei

from settlement.chain.bindings import HostEarnings, JobMarketplace, ProofSystem
from settlement.chain.contracts import Call, load_artifact

DEPLOYMENTS_DIR = Path(__file__).resolve().parent.parent / "contracts" / "deployments"
MISSION_GENERATION = "mission-2025-09"
"""The interface of the mission documents, as on Base Sepolia: pays at completion, no closing claim."""
MODEL_GENERATION = "model-2026-02"
"""Sessions name a model, claims carry a hash: pays at completion, prices for 1000 tokens."""
HOST_GENERATION = "fabstir-host-1"
"""The interface of settlement/contracts/src: pays on each claim, with a closing claim."""
USDC = 1_000_000
_OPTIONAL = ("host_earnings", "proof_system", "node_registry", "model_registry", "mock_verifier", "usdc")
_ARTIFACTS = {
    "job_marketplace": "JobMarketplace",
    "host_earnings": "HostEarnings",
    "proof_system": "ProofSystem",
    "node_registry": "NodeRegistry",
    "model_registry": "ModelRegistry",
    "mock_verifier": "MockVerifier",
    "usdc": "TestUSDC",
}


class DeploymentError(Exception):
    """A deployment file is malformed, or a deployment transaction failed."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The contracts of one chain; None for those that are not known or not there."""

    chain_id: int
    generation: str
    job_marketplace: ChecksumAddress
    host_earnings: ChecksumAddress | None = None
    proof_system: ChecksumAddress | None = None
    node_registry: ChecksumAddress | None = None
    model_registry: ChecksumAddress | None = None
    mock_verifier: ChecksumAddress | None = None
    usdc: ChecksumAddress | None = None
    deployed_at_block: int | None = None
    """number of the first block that can hold one of its events"""
    block_hash: str | None = None
    """hash of that block, which tells one embedded chain from another"""
    explorer: str | None = None

    def to_json(self) -> str:
        """The text of a deployment file."""
        contracts = {_camel(name): getattr(self, name) for name in ("job_marketplace", *_OPTIONAL)}
        stored = {
            "chainId": self.chain_id,
            "generation": self.generation,
            "contracts": contracts,
            "deployedAtBlock": self.deployed_at_block,
            "blockHash": self.block_hash,
            "explorer": self.explorer,
        }
        return json.dumps(stored, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Deployment:
        """The deployment of a file's text; raises DeploymentError naming what is wrong."""
        try:
            stored = json.loads(text)
            contracts = {key: _address(key, value) for key, value in stored["contracts"].items()}
            marketplace = contracts["jobMarketplace"]
            if marketplace is None:
                raise DeploymentError("jobMarketplace has no address")
            return cls(
                chain_id=int(stored["chainId"]),
                generation=str(stored["generation"]),
                job_marketplace=marketplace,
                **{name: contracts.get(_camel(name)) for name in _OPTIONAL},
                deployed_at_block=stored.get("deployedAtBlock"),
                block_hash=stored.get("blockHash"),
                explorer=stored.get("explorer"),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DeploymentError(f"malformed deployment: {type(problem).__name__} {problem}") from problem


def load_deployment(path: Path) -> Deployment:
    """A deployment from its file; raises DeploymentError, or FileNotFoundError."""
    text = path.read_text(encoding="utf-8")
    try:
        return Deployment.from_json(text)
    except DeploymentError as problem:
        raise DeploymentError(f"{path}: {problem}") from problem


def deploy_local(
    w3: Web3,
    *,
    deployer: ChecksumAddress,
    treasury: ChecksumAddress,
    fee_basis_points: int = 1000,
    dispute_window: int = 0,
    expected_tokens_per_second: int = 1000,
    idle_timeout: int = 3600,
    min_stake: int = 10**17,
    usdc_min_deposit: int = USDC // 2,
    usdc_max_deposit: int = 1_000_000 * USDC,
) -> Deployment:
    """Deploys and wires all contracts through the unlocked account `deployer`, who owns them.

    Times in seconds, stake in wei, deposits in base units of test USDC. The mock verifier is listed, so the
    result is for play money only. Raises DeploymentError when a transaction fails.
    """
    usdc, _ = _deploy(w3, "TestUSDC", deployer=deployer)
    models, _ = _deploy(w3, "ModelRegistry", deployer=deployer)
    nodes, _ = _deploy(w3, "NodeRegistry", models, min_stake, deployer=deployer)
    earnings, _ = _deploy(w3, "HostEarnings", deployer=deployer)
    proofs, _ = _deploy(w3, "ProofSystem", deployer=deployer)
    mock, _ = _deploy(w3, "MockVerifier", deployer=deployer)
    terms = (treasury, fee_basis_points, dispute_window, expected_tokens_per_second, idle_timeout)
    marketplace, receipt = _deploy(w3, "JobMarketplace", nodes, earnings, proofs, *terms, deployer=deployer)
    wiring: tuple[Call[None], ...] = (
        HostEarnings(earnings).set_authorized_caller(caller=marketplace, authorized=True),
        ProofSystem(proofs).set_marketplace(marketplace=marketplace, authorized=True),
        ProofSystem(proofs).list_verifier(mock),
        JobMarketplace(marketplace).set_accepted_token(token=usdc, minimum=usdc_min_deposit, maximum=usdc_max_deposit),
    )
    for call in wiring:
        transact(w3, call, sender=deployer)
    return Deployment(
        chain_id=w3.eth.chain_id,
        generation=HOST_GENERATION,
        job_marketplace=marketplace,
        host_earnings=earnings,
        proof_system=proofs,
        node_registry=nodes,
        model_registry=models,
        mock_verifier=mock,
        usdc=usdc,
        deployed_at_block=receipt["blockNumber"],
        block_hash=receipt["blockHash"].to_0x_hex(),
    )


def is_deployed(w3: Web3, deployment: Deployment) -> bool:
    """Whether this is the deployment's chain and its contracts are there, with our code where it is ours."""
    if w3.eth.chain_id != deployment.chain_id or not _has_its_block(w3, deployment):
        return False
    for name, artifact in _ARTIFACTS.items():
        address = getattr(deployment, name)
        if address is None:
            continue
        code = bytes(w3.eth.get_code(address))
        if not code or (deployment.generation == HOST_GENERATION and not load_artifact(artifact).matches(code)):
            return False
    return True


def transact(w3: Web3, call: Call[Any], *, sender: ChecksumAddress) -> TxReceipt:
    """Sends a call from an unlocked account of a local chain and waits; raises DeploymentError if it fails.

    A call that reverts already at gas estimation raises web3's exception, which `reverts` decodes.
    """
    transaction: TxParams = {
        "from": sender,
        "to": call.to,
        "value": Wei(call.value),
        "data": HexBytes(call.data),
    }
    return _mined(w3, transaction, what=call.function.name)


def _has_its_block(w3: Web3, deployment: Deployment) -> bool:
    """Whether the recorded block is there: a chain begun anew has the same addresses but other blocks."""
    if deployment.deployed_at_block is None or deployment.block_hash is None:
        return True
    try:
        block = w3.eth.get_block(deployment.deployed_at_block)
    except BlockNotFound:
        return False
    return block["hash"] == HexBytes(deployment.block_hash)


def _deploy(w3: Web3, name: str, *arguments: Any, deployer: ChecksumAddress) -> tuple[ChecksumAddress, TxReceipt]:
    data = load_artifact(name).deployment_data(*arguments)
    receipt = _mined(w3, {"from": deployer, "data": HexBytes(data)}, what=f"deployment of {name}")
    return to_checksum_address(HexStr(str(receipt["contractAddress"]))), receipt


def _mined(w3: Web3, transaction: TxParams, *, what: str) -> TxReceipt:
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_transaction(transaction), timeout=60, poll_latency=0.01)
    if receipt["status"] != 1:
        raise DeploymentError(f"{what} failed in transaction {receipt['transactionHash'].to_0x_hex()}")
    return receipt


def _address(key: str, value: Any) -> ChecksumAddress | None:
    if value is None:
        return None
    if not isinstance(value, str) or not is_address(value):
        raise DeploymentError(f"{key} is no address: {value!r}")
    return to_checksum_address(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def addresses(deployment: Deployment) -> Mapping[str, ChecksumAddress]:
    """The known addresses by field name, for the event indexer and for display."""
    named = {name: getattr(deployment, name) for name in ("job_marketplace", *_OPTIONAL)}
    return {name: address for name, address in named.items() if address is not None}
