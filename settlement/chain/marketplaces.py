"""Which adapter speaks to a deployment: one for each marketplace generation."""

from __future__ import annotations

from collections.abc import Callable

from settlement.chain.deployment import Deployment
from settlement.chain.escrow_marketplace import EscrowMarketplace
from settlement.chain.marketplace import Marketplace, UnsupportedGeneration
from settlement.chain.mission_marketplace import MissionMarketplace
from settlement.chain.model_marketplace import ModelMarketplace

_GENERATIONS: dict[str, Callable[[Deployment], Marketplace]] = {
    EscrowMarketplace.generation: EscrowMarketplace,
    MissionMarketplace.generation: MissionMarketplace,
    ModelMarketplace.generation: ModelMarketplace,
}


def known_generations() -> tuple[str, ...]:
    """The generations that this release settles with."""
    return tuple(_GENERATIONS)


def marketplace_of(deployment: Deployment) -> Marketplace:
    """The adapter of the deployment's generation. Raises ``UnsupportedGeneration``."""
    adapter = _GENERATIONS.get(deployment.generation)
    if adapter is None:
        raise UnsupportedGeneration(
            f"The deployment on chain {deployment.chain_id} is of generation {deployment.generation!r}; this "
            f"release settles with {', '.join(_GENERATIONS)}."
        )
    return adapter(deployment)
