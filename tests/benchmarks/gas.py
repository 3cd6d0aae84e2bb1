"""Gas of a claim by its size: what batching tokens into larger claims saves. On an anvil of its own."""

from __future__ import annotations

import json
from pathlib import Path

from settlement.chain import local
from settlement.chain.toolchain import fetch_anvil
from tests.chain.world import World, build_world

CHECKOUT = Path(__file__).resolve().parents[2]
SIZES = (100, 1_000, 10_000)


def measure() -> dict[str, float]:
    """Gas per claim and per token, of a host's later claims in ETH and in USDC, with the mock proof."""
    figures: dict[str, float] = {}
    binary = fetch_anvil(tools_dir=CHECKOUT / "var" / "tools", progress=print)
    with local.TemporaryAnvil(binary=binary) as anvil:
        world = build_world(anvil.url)
        opened = {"ETH": lambda: world.open_eth(), "USDC": lambda: world.open_usdc(deposit=100_000_000)}
        for currency, open_job in opened.items():
            # The first claims of a host and of a job write to storage that was empty.
            _claim(world, open_job(), 100)
            for size in SIZES:
                job_id = open_job()
                _claim(world, job_id, size)
                gas = _claim(world, job_id, size)
                figures[f"gas of a claim of {size} tokens, {currency}"] = gas
                figures[f"gas per token of a claim of {size} tokens, {currency}"] = gas / size
    return figures


def _claim(world: World, job_id: int, tokens: int) -> int:
    world.pass_time(60)
    receipt = world.send(world.claim(job_id, tokens), sender=world.host)
    return int(receipt["gasUsed"])


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
