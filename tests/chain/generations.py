"""Stand-ins for the marketplaces of other generations, deployed beside this repository's own contracts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from web3.types import TxReceipt

from settlement.chain import local
from settlement.chain.bindings import HostEarnings, MissionJobMarketplace, ModelJobMarketplace, ModelRegistry
from settlement.chain.client import ChainClient
from settlement.chain.contracts import Call, FunctionSpec, encode_values, nothing
from settlement.chain.deployment import MISSION_GENERATION, MODEL_GENERATION
from settlement.chain.marketplace import Marketplace, MarketplaceJob
from settlement.chain.marketplaces import marketplace_of
from tests.chain.world import World, build_world, mock_proof

OtherT = TypeVar("OtherT", bound="OtherWorld")
FEE = 1000
DISPUTE_WINDOW = 30


def administer(contract: str, signature: str, *values: Any) -> Call[None]:
    """A call that only a stand-in's owner makes, hence without a binding."""
    name, _, types = signature.removesuffix(")").partition("(")
    spec = FunctionSpec(name, tuple(types.split(",")), ())
    data = spec.selector + encode_values(spec.inputs, values)
    return Call(to=to_checksum_address(contract), data=data, value=0, function=spec, decoder=nothing)


def unused_proof() -> bytes:
    """Long enough for the mission's proof system, and never used before."""
    return mock_proof() + bytes(64)


class OtherWorld(World):
    """A marketplace that is not this repository's, with the adapter that speaks to it."""

    @property
    def adapter(self) -> Marketplace:
        return marketplace_of(self.deployment)

    @property
    def client(self) -> ChainClient:
        return ChainClient((self.url,), chain_id=local.CHAIN_ID)

    def found(self, job_id: int) -> MarketplaceJob:
        job = self.adapter.find_job(self.client, job_id)
        assert job is not None
        return job

    def claim(self, job_id: int, tokens: int, *, proof: bytes | None = None) -> Call[None]:
        return self.adapter.claim(job_id=job_id, tokens=tokens, proof=unused_proof() if proof is None else proof)

    def raw_logs(self, receipt: TxReceipt) -> list[Mapping[str, Any]]:
        """The transaction's logs as a node gives them."""
        number = receipt["blockNumber"]
        return self.client.logs(addresses=self.adapter.addresses, from_block=number, to_block=number)

    def earned(self, token: str) -> int:
        return self.adapter.withdrawable(self.client, host=self.host, token=token)

    def refused(self, call: Call[Any], *, sender: ChecksumAddress, at: int | None = None) -> str:
        """The name of the refusal, by which the adapter tells its meaning."""
        return self.refusal(call, sender=sender, at=at).name


class MissionWorld(OtherWorld):
    """The mission documents' marketplace. Its calls share their signatures with this repository's."""

    @property
    def mission(self) -> MissionJobMarketplace:
        return MissionJobMarketplace(self.deployment.job_marketplace)


class ModelWorld(OtherWorld):
    """The marketplace with models: prices for 1000 tokens, claims by hash."""

    @property
    def models_market(self) -> ModelJobMarketplace:
        return ModelJobMarketplace(self.deployment.job_marketplace)

    def create_eth(self, *, deposit: int = 10**18, price: int = 10**12, **terms: Any) -> Call[int]:
        given = {"host": self.host, "model_id": self.model_id, "max_duration": 86400, "proof_interval": 100}
        given |= {"proof_timeout_window": 300, "price_per_token": price * 1000}
        return self.models_market.create_session_job_for_model(value=deposit, **(given | terms))

    def create_usdc(self, *, deposit: int = 1_000_000, price: int = 2000, **terms: Any) -> Call[int]:
        given = {"host": self.host, "model_id": self.model_id, "max_duration": 86400, "proof_interval": 100}
        given |= {"token": self.usdc.address, "proof_timeout_window": 300, "price_per_token": price * 1000}
        return self.models_market.create_session_job_for_model_with_token(deposit=deposit, **(given | terms))


def mission_world(url: str, *, tokens_per_second: int = 10, dispute_window: int = DISPUTE_WINDOW) -> MissionWorld:
    base = build_world(url)
    proofs = base.deploy("MissionProofSystem")
    arguments = (base.nodes.address, base.earnings.address, FEE, dispute_window, tokens_per_second, base.usdc.address)
    address = base.deploy("MissionStandIn", *arguments)
    base.send(administer(address, "setProofSystem(address)", proofs), sender=base.owner)
    return _placed(base, MissionWorld, address=address, generation=MISSION_GENERATION, proof_system=proofs)


def model_world(url: str, *, dispute_window: int = DISPUTE_WINDOW, rate_limit: int | None = None) -> ModelWorld:
    base = build_world(url)
    models = base.deploy("RatedModelRegistry")
    named = ModelRegistry(models).add_trusted_model(repo="acme/tiny", file="tiny.gguf", sha256_hash=bytes(32))
    base.send(named, sender=base.owner)
    if rate_limit is not None:
        limit = administer(models, "setModelRateLimit(bytes32,uint256)", base.model_id, rate_limit)
        base.send(limit, sender=base.owner)
    arguments = (base.nodes.address, models, base.earnings.address, FEE, dispute_window, base.usdc.address)
    address = base.deploy("ModelStandIn", *arguments)
    return _placed(base, ModelWorld, address=address, generation=MODEL_GENERATION, model_registry=models)


def _placed(base: World, kind: type[OtherT], *, address: ChecksumAddress, **changes: Any) -> OtherT:
    authorize = HostEarnings(base.earnings.address).set_authorized_caller(caller=address, authorized=True)
    base.send(authorize, sender=base.owner)
    block = base.w3.eth.get_block("latest")
    deployment = replace(
        base.deployment,
        job_marketplace=address,
        deployed_at_block=block["number"],
        block_hash=block["hash"].to_0x_hex(),
        **changes,
    )
    accounts = (base.owner, base.owner, base.host, base.user, base.stranger)
    return kind(base.url, base.w3, deployment, *accounts, base.model_id)
