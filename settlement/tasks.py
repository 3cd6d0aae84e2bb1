"""Periodic settlement work. Each task is safe to lose, to repeat and to run twice at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from celery import shared_task

from settlement import (
    claims,
    closing,
    contract_settings,
    earnings,
    following,
    indexer,
    ledger,
    proving,
    recovery,
    sealing,
    sweeping,
    withdrawals,
)
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from settlement.host_chain import HostChain, host_chain

logger = logging.getLogger(__name__)

# Turns of one broadcast task: full batches follow each other at once, and others get their turn, too.
_TURNS = 8


def _with_chain(step: Callable[[HostChain], object]) -> object:
    """Run a step; a chain that is away is no error of the step: the next tick tries again."""
    try:
        return step(host_chain())
    except (ChainUnavailable, NodeRefused) as failure:
        logger.warning("%s waits: %s", _name(step), failure, extra={"event": "chain_unavailable"})
        return None
    except (CallReverted, CodecError) as failure:
        # No contract of ours is at the address, or one of another generation.
        logger.error(
            "%s cannot go on: %s. Run manage.py preflight.",
            _name(step),
            failure,
            extra={"event": "contract_unreadable"},
        )
        return None


def _name(step: Callable[[HostChain], object]) -> str:
    function = step.func if isinstance(step, partial) else step
    return getattr(function, "__name__", "a step")


@shared_task
def seal_checkpoints() -> None:
    """Seal due tokens; what was sealed is proved and submitted at once."""
    if _with_chain(sealing.seal_due):
        prove_checkpoints.delay()


@shared_task
def prove_checkpoints() -> None:
    """Prove sealed checkpoints."""
    if _with_chain(proving.prove_due):
        submit_checkpoints.delay()


@shared_task
def submit_checkpoints() -> None:
    """Put proved checkpoints into the outbox."""
    if _with_chain(claims.submit_due):
        broadcast_transactions.delay()


@shared_task
def broadcast_transactions() -> None:
    """Sign and send what is in the outbox."""
    if _with_chain(_broadcast):
        confirm_transactions.delay()


def _broadcast(chain: HostChain) -> int:
    """Send and watch while rows move: what was mined makes room for what waits."""
    manager = chain.manager
    if manager is None:
        return 0
    sent = 0
    for _ in range(_TURNS):
        newly = manager.broadcast()
        sent += newly
        if not newly + manager.watch():
            break
    return sent


@shared_task
def confirm_transactions() -> None:
    """Watch receipts to finality and let checkpoints follow."""
    _with_chain(_confirm)


def _confirm(chain: HostChain) -> int:
    if chain.manager is not None:
        chain.manager.watch()
    followed = following.follow_transactions(chain)
    return followed + earnings.book_gas_due(chain)


@shared_task
def index_events() -> None:
    """Apply the marketplace's events."""
    _with_chain(indexer.index_events)


@shared_task
def close_sessions() -> None:
    """Finish ended sessions."""
    _with_chain(closing.close_due)


@shared_task
def advance_withdrawals() -> None:
    """Take withdrawals and sweeps that were asked for to their next step."""
    if _with_chain(withdrawals.advance):
        broadcast_transactions.delay()


@shared_task
def sweep_earnings() -> None:
    """Ask for the withdrawals and transfers that the operator's thresholds demand."""
    if _with_chain(sweeping.sweep_due):
        advance_withdrawals.delay()


@shared_task
def check_ledger() -> None:
    """Check the ledger's invariants in the database."""
    ledger.check_database()


@shared_task
def check_ledger_on_chain() -> None:
    """Check the ledger against the chain's own events."""
    _with_chain(ledger.check_chain)


@shared_task
def recover(*, complete: bool = False) -> None:
    """Repair what is out of step with the chain; ``complete`` once, when a worker starts."""
    _with_chain(partial(recovery.recover, complete=complete))


@shared_task
def watch_prover() -> None:
    """Raise an alert if tokens wait and nothing is proved."""
    _with_chain(proving.watch_prover)


@shared_task
def read_contracts() -> None:
    """Refresh what the admin shows of the contracts."""
    _with_chain(contract_settings.refresh)
