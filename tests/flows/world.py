"""The chain of the flow tests: one anvil with the contracts, a host whose key the node holds, and a clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone
from eth_account import Account
from eth_account.signers.local import LocalAccount

from settlement.chain import local
from settlement.chain.signer import compressed_public_key
from tests.chain.world import World, build_world

real_now = timezone.now


@dataclass
class Clock:
    """Moves the chain and the node's ``timezone.now`` together, so that no rule has to be waited for."""

    url: str
    ahead: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return real_now() + self.ahead

    def advance(self, seconds: int) -> None:
        local.increase_time(self.url, seconds=seconds)
        self.ahead += timedelta(seconds=seconds)


@dataclass
class FlowWorld:
    """``world`` opens jobs for ``account``, the node's host; ``folder`` holds the deployment file."""

    world: World
    account: LocalAccount
    clock: Clock
    folder: Path

    @property
    def url(self) -> str:
        return self.world.url

    @property
    def key(self) -> str:
        return "0x" + self.account.key.hex().removeprefix("0x")

    def impersonate(self, address: str) -> None:
        local.rpc(self.url, "anvil_impersonateAccount", [address])


def build_flow_world(
    url: str, *, folder: Path, chain_id: int = local.CHAIN_ID, build: Callable[[str], World] = build_world
) -> FlowWorld:
    """Deploys, and registers a host whose key is made here. Its deployment file is the node's own kind."""
    world = build(url)
    account = Account.create()
    local.fund(url, address=account.address, wei=100 * 10**18)
    flow = FlowWorld(world=world, account=account, clock=Clock(url), folder=folder)
    flow.impersonate(account.address)
    metadata = json.dumps({"publicKey": compressed_public_key(account)})
    world.send(world.register(account.address, metadata=metadata), sender=account.address)
    local.rpc(url, "anvil_stopImpersonatingAccount", [account.address])
    world.host = account.address
    file = folder / "chain" / f"deployment-{chain_id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(world.deployment.to_json())
    return flow
