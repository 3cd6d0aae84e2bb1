"""A deployed marketplace with a registered host, a funded user and the verbs that tests need."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3
from web3.exceptions import Web3Exception
from web3.types import TxReceipt

from settlement.chain import local
from settlement.chain.bindings import (
    HostEarnings,
    JobMarketplace,
    MockVerifier,
    ModelRegistry,
    NodeRegistry,
    ProofSystem,
    TestUSDC,
)
from settlement.chain.bindings.structs import SessionJob
from settlement.chain.contracts import Call, ContractEvent, load_artifact
from settlement.chain.deployment import Deployment, deploy_local, transact
from settlement.chain.reverts import Revert, revert_of

T = TypeVar("T")
EventT = TypeVar("EventT", bound=ContractEvent)
ETH = "0x0000000000000000000000000000000000000000"
TEST_ARTIFACTS = Path(__file__).resolve().parent / "artifacts"
MOCK_SELECTOR = keccak(text="fabstir.mock.v1")[:4]
MIN_PRICE_NATIVE = 10**9
MIN_PRICE_STABLE = 100
_bodies = itertools.count(1)


def mock_proof() -> bytes:
    """A proof that the mock verifier believes and no other test has used."""
    return MOCK_SELECTOR + next(_bodies).to_bytes(8, "big")


@dataclass
class World:
    url: str
    w3: Web3
    deployment: Deployment
    owner: ChecksumAddress
    treasury: ChecksumAddress
    host: ChecksumAddress
    user: ChecksumAddress
    stranger: ChecksumAddress
    model_id: bytes
    marketplace: JobMarketplace = field(init=False)
    earnings: HostEarnings = field(init=False)
    proofs: ProofSystem = field(init=False)
    nodes: NodeRegistry = field(init=False)
    models: ModelRegistry = field(init=False)
    mock: MockVerifier = field(init=False)
    usdc: TestUSDC = field(init=False)

    def __post_init__(self) -> None:
        self.marketplace = JobMarketplace(self.deployment.job_marketplace)
        self.earnings = HostEarnings(str(self.deployment.host_earnings))
        self.proofs = ProofSystem(str(self.deployment.proof_system))
        self.nodes = NodeRegistry(str(self.deployment.node_registry))
        self.models = ModelRegistry(str(self.deployment.model_registry))
        self.mock = MockVerifier(str(self.deployment.mock_verifier))
        self.usdc = TestUSDC(str(self.deployment.usdc))

    def read(self, call: Call[T], *, sender: str | None = None) -> T:
        transaction: Any = {"to": call.to, "data": call.data, "value": call.value}
        if sender is not None:
            transaction["from"] = sender
        return call.decode(bytes(self.w3.eth.call(transaction)))

    def send(self, call: Call[Any], *, sender: ChecksumAddress) -> TxReceipt:
        return transact(self.w3, call, sender=sender)

    def send_at(self, call: Call[Any], *, sender: ChecksumAddress, timestamp: int) -> TxReceipt:
        """Sends with the block's time fixed; a call that is refused there is mined all the same."""
        local.set_next_block_time(self.url, timestamp=timestamp)
        transaction: Any = {"from": sender, "to": call.to, "data": call.data, "value": call.value}
        transaction["gas"] = 10**6
        return self.w3.eth.wait_for_transaction_receipt(self.w3.eth.send_transaction(transaction))

    def refusal(self, call: Call[Any], *, sender: ChecksumAddress, at: int | None = None) -> Revert:
        """Why the chain refuses the call, simulated at a given time; fails where it does not."""
        transaction = {"from": sender, "to": call.to, "data": call.data, "value": hex(call.value)}
        block = {} if at is None else {"time": hex(at)}
        request = self.w3.manager.request_blocking
        return refusal_of(lambda: request("eth_call", [transaction, "latest", {}, block]))

    def deploy(self, name: str, *arguments: Any, value: int = 0) -> ChecksumAddress:
        folder = {"folder": TEST_ARTIFACTS} if (TEST_ARTIFACTS / f"{name}.json").exists() else {}
        data = load_artifact(name, **folder).deployment_data(*arguments)
        transaction: Any = {"from": self.owner, "data": data, "value": value}
        address = self.w3.eth.wait_for_transaction_receipt(self.w3.eth.send_transaction(transaction))
        return Web3.to_checksum_address(str(address["contractAddress"]))

    def events(self, receipt: TxReceipt, kind: type[EventT]) -> list[EventT]:
        logs = [log for log in receipt["logs"] if bytes(log["topics"][0]) == kind.topic]
        return [kind.decode(log).event for log in logs]

    def pass_time(self, seconds: int) -> None:
        local.increase_time(self.url, seconds=seconds)

    def now(self) -> int:
        return int(self.w3.eth.get_block("latest")["timestamp"])

    def balance(self, account: str, token: str) -> int:
        if token == ETH:
            return int(self.w3.eth.get_balance(Web3.to_checksum_address(account)))
        return self.read(TestUSDC(token).balance_of(Web3.to_checksum_address(account)))

    def job(self, job_id: int) -> SessionJob:
        return self.read(self.marketplace.session_jobs(job_id))

    def open_eth(self, *, deposit: int = 10**18, price: int = 10**12, **terms: Any) -> int:
        call = self.create_eth(deposit=deposit, price=price, **terms)
        return self._open(call)

    def open_usdc(self, *, deposit: int = 1_000_000, price: int = 2000, **terms: Any) -> int:
        self.mint(deposit)
        return self._open(self.create_usdc(deposit=deposit, price=price, **terms))

    def create_eth(self, *, deposit: int = 10**18, price: int = 10**12, **terms: Any) -> Call[int]:
        arguments = {"host": self.host, "max_duration": 86400, "proof_interval": 100, **terms}
        return self.marketplace.create_session_job(price_per_token=price, value=deposit, **arguments)

    def create_usdc(self, *, deposit: int = 1_000_000, price: int = 2000, **terms: Any) -> Call[int]:
        arguments = {"token": self.usdc.address, "host": self.host, "max_duration": 86400} | {"proof_interval": 100}
        return self.marketplace.create_session_job_with_token(
            deposit=deposit, price_per_token=price, **(arguments | terms)
        )

    def mint(self, amount: int, *, token: str | None = None) -> None:
        usdc = TestUSDC(token or self.usdc.address)
        self.send(usdc.mint(to=self.user, amount=amount), sender=self.user)
        self.send(usdc.approve(spender=self.marketplace.address, value=amount), sender=self.user)

    def claim(self, job_id: int, tokens: int, *, proof: bytes | None = None) -> Call[None]:
        return self.marketplace.submit_proof_of_work(
            job_id=job_id, tokens_claimed=tokens, proof=mock_proof() if proof is None else proof
        )

    def complete(self, job_id: int) -> Call[None]:
        return self.marketplace.complete_session_job(job_id=job_id, conversation_cid="cid")

    def close(self, job_id: int, tokens: int, *, proof: bytes | None = None) -> Call[None]:
        return self.marketplace.complete_session_job_with_proof(
            job_id=job_id,
            tokens_claimed=tokens,
            proof=mock_proof() if proof is None else proof,
            conversation_cid="cid",
        )

    def register(self, operator: ChecksumAddress, **terms: Any) -> Call[None]:
        arguments = {
            "metadata": '{"publicKey": "02"}',
            "api_url": "http://host.example:8080",
            "model_ids": [self.model_id],
            "min_price_native": MIN_PRICE_NATIVE,
            "min_price_stable": MIN_PRICE_STABLE,
            "value": 10**17,
        }
        return self.nodes.register_node(**(arguments | terms))

    def _open(self, call: Call[int]) -> int:
        job_id = self.read(self.marketplace.next_job_id())
        self.send(call, sender=self.user)
        return job_id


def refusal_of(action: Callable[[], object]) -> Revert:
    try:
        action()
    except Web3Exception as problem:
        revert = revert_of(problem)
        assert revert is not None, f"no revert in {problem!r}"
        return revert
    raise AssertionError("the chain did not refuse")


def build_world(url: str, **terms: Any) -> World:
    """Deploys everything, approves a model and registers a host."""
    w3 = Web3(HTTPProvider(url))
    owner, treasury, host, user, stranger = local.accounts(url)[:5]
    deployment = deploy_local(w3, deployer=owner, treasury=treasury, **terms)
    models = ModelRegistry(str(deployment.model_registry))
    named = {"repo": "acme/tiny", "file": "tiny.gguf"}
    transact(w3, models.add_trusted_model(**named, sha256_hash=bytes(32)), sender=owner)
    model_id = keccak(text="acme/tiny/tiny.gguf")
    world = World(url, w3, deployment, owner, treasury, host, user, stranger, model_id)
    world.send(world.register(host), sender=host)
    return world
