"""Sweeping: what exceeds the operator's threshold goes out of the contract, and on to the operator's address.

Guarantees that nothing is sent anywhere but to FABSTIR_SWEEP_TO, that a day's gas stays with the host,
and that a failure is not repeated within the hour. Does nothing where no threshold is set.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from eth_utils.address import to_checksum_address

from settlement import withdrawals
from settlement.chain.bindings import TestUSDC
from settlement.chain.marketplace import NATIVE_COIN
from settlement.host_chain import HostChain
from settlement.models import Withdrawal, WithdrawalKind, WithdrawalState

logger = logging.getLogger(__name__)

_AFTER_FAILURE = timedelta(hours=1)
_ACTOR = "auto-sweep"


def sweep_due(chain: HostChain) -> int:
    """Ask for the withdrawals and transfers that are due; returns how many."""
    target = settings.ENVIRONMENT.sweep_to
    if chain.signer is None or target is None:
        return 0
    thresholds = {
        token: threshold
        for name, threshold in settings.ENVIRONMENT.sweep_above.items()
        for token in withdrawals.tokens_named(chain, name)
    }
    return _withdraw_due(chain, thresholds) + _transfer_due(chain, thresholds, target=target)


def _withdraw_due(chain: HostChain, thresholds: dict[str, int]) -> int:
    host = chain.host or ""
    due = [
        token
        for token, threshold in thresholds.items()
        if chain.marketplace.withdrawable(chain.client, host=host, token=token) > threshold
    ]
    if not due or not _may_ask(chain, WithdrawalKind.WITHDRAW):
        return 0
    try:
        key = _next_key(chain, WithdrawalKind.WITHDRAW)
        withdrawals.request(chain, tokens=due, request_key=key, actor=_ACTOR)
    except withdrawals.WithdrawalRefused as refused:
        logger.info("auto-sweep waits: %s", refused, extra={"event": "sweep_waits"})
        return 0
    return 1


def _transfer_due(chain: HostChain, thresholds: dict[str, int], *, target: str) -> int:
    for token, threshold in thresholds.items():
        spare = _spare(chain, token)
        if spare <= threshold or not _may_ask(chain, WithdrawalKind.SWEEP):
            continue
        try:
            withdrawals.record(
                chain,
                kind=WithdrawalKind.SWEEP,
                tokens=[token],
                amount=spare,
                recipient=target,
                request_key=_next_key(chain, WithdrawalKind.SWEEP),
                actor=_ACTOR,
            )
        except withdrawals.WithdrawalRefused as refused:
            logger.info("auto-sweep waits: %s", refused, extra={"event": "sweep_waits"})
            continue
        # The next token's turn comes when this transfer is final.
        return 1
    return 0


def _spare(chain: HostChain, token: str) -> int:
    """What the host's own account holds beyond the gas budget of a day."""
    host = to_checksum_address(chain.host or "")
    if token == NATIVE_COIN:
        return max(0, chain.client.balance(host) - chain.limits.daily_budget)
    return chain.client.call(TestUSDC(to_checksum_address(token)).balance_of(host))


def _may_ask(chain: HostChain, kind: WithdrawalKind) -> bool:
    mine = Withdrawal.objects.filter(deployment=chain.key, kind=kind)
    recent = timezone.now() - _AFTER_FAILURE
    return not (
        mine.unfinished().exists()
        or mine.filter(state=WithdrawalState.FAILED, requested_by=_ACTOR, finished_at__gt=recent).exists()
    )


def _next_key(chain: HostChain, kind: WithdrawalKind) -> str:
    """Two workers that see the same past ask with the same key, and so only once."""
    last = Withdrawal.objects.filter(deployment=chain.key, kind=kind).values_list("pk", flat=True).first()
    return f"{_ACTOR}:{kind}:after-{last or 0}"
