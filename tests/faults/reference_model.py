"""What must be true of transactions whatever happens: the reference that the interleavings are held against.

It knows promises (which call, whether it was asked to be cancelled), what the table says and what the chain
has. It knows nothing of how the manager works.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.faults.simulated_chain import SimulatedChain

# From, to. What is not here may not happen; the arrows back to "sent" need a reorg.
_ARROWS = """new > queued, new > in_progress, queued > in_progress, queued > failed, queued > cancelled,
in_progress > sent, sent > mined, sent > queued, sent > cancelled, mined > final, mined > reverted, mined > cancelled,
cancelled > in_progress, mined > sent, final > sent, reverted > sent, cancelled > sent"""
ARROWS = frozenset(tuple(arrow.strip().split(" > ")) for arrow in _ARROWS.split(","))
UNMADE = frozenset({("final", "sent"), ("reverted", "sent"), ("cancelled", "sent")})


@dataclass(kw_only=True)
class Promise:
    """A transaction that was asked for. ``given_up``: an operator cancelled it, or a node refused it for good."""

    work: tuple[str, str]
    given_up: bool = False


def executed(chain: SimulatedChain) -> Counter[tuple[str, str]]:
    """How often each call is part of the chain, be it with success or not."""
    return Counter(sent.work for block in chain.blocks for sent in block.transactions if sent.work)


def held(chain: SimulatedChain) -> None:
    """At any time: no call is part of the chain twice."""
    twice = [work for work, times in executed(chain).items() if times > 1]
    assert not twice, f"ran twice: {twice}"


def kept(chain: SimulatedChain, promises: dict[str, Promise], ended: dict[str, str], nonces: dict[int, str]) -> None:
    """Once everything has calmed down. ``ended``: state by key; ``nonces``: the hash that the table says used each."""
    ran = executed(chain)
    for key, promise in promises.items():
        state, data = ended[key], promise.work[1]
        expected = "failed" if chain.refuses(data) else "reverted" if chain.reverts(data) else "final"
        assert state == expected or (promise.given_up and state == "cancelled"), f"{key} ended {state}, not {expected}"
        times = 1 if state in ("final", "reverted") else 0
        assert ran[promise.work] == times, f"{key} is {state} and ran {ran[promise.work]} times"
    assert set(ran) <= {promise.work for promise in promises.values()}, "a call ran that nobody asked for"
    used = [sent for block in chain.blocks for sent in block.transactions]
    assert [sent.nonce for sent in used] == list(range(len(used))), "the chain itself is wrong"
    assert max(nonces, default=-1) < len(used), "a nonce was given and never used"
    for sent in used:
        theirs = nonces.get(sent.nonce)
        assert theirs == (None if sent.foreign else sent.hash), f"nonce {sent.nonce}: {theirs}, not {sent}"
