"""Periodic settlement work. Each task is safe to lose, to repeat and to run twice at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import shared_task

from settlement import claims, closing, contract_settings, indexer
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import HostChain, host_chain
from settlement.txmanager import broadcaster, confirmer

logger = logging.getLogger(__name__)


def _with_chain(step: Callable[[HostChain], object]) -> object:
    """Run a step; a chain that is away is no error of the step: the next tick tries again."""
    try:
        return step(host_chain())
    except (ChainUnavailable, NodeRefused) as failure:
        logger.warning("%s waits: %s", step.__name__, failure, extra={"event": "chain_unavailable"})
        return None


@shared_task
def seal_checkpoints() -> None:
    """Seal due tokens; what was sealed is proved and submitted at once."""
    if _with_chain(claims.seal_due):
        prove_checkpoints.delay()


@shared_task
def prove_checkpoints() -> None:
    """Prove sealed checkpoints."""
    if _with_chain(claims.prove_due):
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
    if chain.signer is None:
        return 0
    return broadcaster.broadcast(chain.client, signer=chain.signer, max_fee_per_gas=chain.max_fee_per_gas)


@shared_task
def confirm_transactions() -> None:
    """Watch receipts to finality and let checkpoints follow."""
    _with_chain(_confirm)


def _confirm(chain: HostChain) -> int:
    if chain.host is not None:
        confirmer.watch(chain.client, sender=chain.host, confirmations=chain.confirmations)
    return claims.follow_transactions(chain)


@shared_task
def index_events() -> None:
    """Apply the marketplace's events."""
    _with_chain(indexer.index_events)


@shared_task
def close_sessions() -> None:
    """Finish ended sessions."""
    _with_chain(_close)


def _close(chain: HostChain) -> int:
    closing.book_completion_gas(chain)
    return closing.close_due(chain)


@shared_task
def read_contracts() -> None:
    """Refresh what the admin shows of the contracts."""
    _with_chain(contract_settings.refresh)
