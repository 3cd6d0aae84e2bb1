"""One fault of a node, played over the whole life of a transaction: the fault lasts for rounds, then it is over.

In each round the broadcaster and the watcher take their turns twice, so that what waits is seen to wait, and
then the clock passes every pause there is. Failures are kept as the tasks keep them: what a task would not
expect ends the play with its own exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from eth_account import Account

from settlement.chain.client import ChainClient, ChainUnavailable, NodeRefused
from settlement.chain.local import free_port
from settlement.models import Attempt, Receipt, Sender, Transaction, TransactionState
from tests.faults.rpc_node import ROUNDS, Chain, Fault, Node, no_fault
from tests.settlement.conftest import Clock, Wallet, wallet_on

PAST_EVERY_PAUSE = timedelta(minutes=11)
_MARKETPLACE = "0x" + "Aa" * 20
_PATIENT = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcFault:
    """A fault and what it may lead to.

    ``state``, ``reason`` and ``paused`` (the sender's reason, or "") are those after ``ROUNDS`` rounds of it;
    the reason is the row's, or what the task told where the row has none. ``sends`` and ``attempts`` are the
    most that may be handed over and signed in all that time, ``ends`` is how the transaction ends afterwards.
    """

    name: str
    fault: Callable[[Chain], Fault]
    state: TransactionState
    reason: str
    sends: int
    attempts: int = 1
    ends: TransactionState = TransactionState.FINAL
    in_flight: bool = False
    paused: str = ""
    nonces: int = 1
    limits: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Chain], None] | None = None
    after: Callable[[Chain], None] | None = None
    afterwards: dict[str, Any] = field(default_factory=dict)
    timeout: float = _PATIENT
    nobody_there: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it, under the fault and after it. ``runs`` is how often the call is on the chain."""

    state: str
    reason: str
    paused: str
    sends: int
    attempts: int
    nonces: int
    worst_cost: int
    ended: str
    runs: int
    receipts: int


def play(fault: RpcFault, *, node: Node, clock: Clock) -> Outcome:
    """One transaction under ``fault`` for ``ROUNDS`` rounds, and then without it until it has ended."""
    wallet = wallet_on(node.url, marketplace=_MARKETPLACE, account=Account.create())
    wallet.limit(**fault.limits)
    wallet.client = _client(node.url, clock)
    row = wallet.enqueue(**fault.options)
    if fault.in_flight:
        wallet.broadcast()
    if fault.before:
        fault.before(node.chain)
    node.fault = fault.fault(node.chain)
    url = f"http://127.0.0.1:{free_port()}" if fault.nobody_there else node.url
    wallet.client = _client(url, clock, timeout=fault.timeout)
    told = ""
    for _ in range(ROUNDS):
        told = turn(wallet, node.chain) or told
        clock.offset += PAST_EVERY_PAUSE
    row.refresh_from_db()
    under_fault = _seen(row, node, told=told)
    node.fault = no_fault
    if fault.after:
        fault.after(node.chain)
    wallet.client = _client(node.url, clock)
    wallet.limit(**fault.afterwards)
    for _ in range(2 * ROUNDS):
        turn(wallet, node.chain)
        clock.offset += PAST_EVERY_PAUSE
    row.refresh_from_db()
    data = bytes.fromhex(row.data.removeprefix("0x"))
    runs = sum(1 for one in node.chain.mined() if one is not None and one.data == data)
    receipts = Receipt.objects.filter(transaction=row).count()
    return Outcome(**under_fault, ended=row.state, runs=runs, receipts=receipts)


def turn(wallet: Wallet, chain: Chain) -> str:
    """What the tasks do around a block, twice; returns what they would log of the chain being away."""
    told = ""
    for step in (wallet.broadcast, wallet.broadcast, chain.mine, wallet.watch, wallet.watch):
        try:
            step()
        except (ChainUnavailable, NodeRefused) as failure:
            told = str(failure)
    return told


def _client(url: str, clock: Clock, *, timeout: float = _PATIENT) -> ChainClient:
    return ChainClient(
        (url,),
        chain_id=31337,
        timeout_seconds=timeout,
        clock=lambda: time.monotonic() + clock.offset.total_seconds(),
    )


def _seen(row: Transaction, node: Node, *, told: str) -> dict[str, Any]:
    attempts = list(Attempt.objects.filter(transaction=row))
    sender = Sender.objects.filter(address=row.sender).first()
    return {
        "state": row.state,
        "reason": row.reason or told,
        "paused": sender.paused_reason if sender else "",
        "sends": len(node.sent()),
        "attempts": len(attempts),
        "nonces": len({attempt.nonce for attempt in attempts}),
        "worst_cost": max((attempt.worst_cost for attempt in attempts), default=0),
    }
