"""Pacing: the chain's clock, the moment from which a job's rate counts, and what its claims bring and cost.

Reads the chain for its time and for what claims cost; decides nothing, ``policy`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from jobs.models import Session
from settlement import policy
from settlement.chain.marketplace import NATIVE_COIN, Terms
from settlement.host_chain import HostChain
from settlement.models import TransactionKind
from settlement.txmanager import quotes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one pass over the due rows needs of the chain, read once.

    ``now`` is the later of this machine's time and the newest block's: the next block is not older
    than either. ``usual_cost`` is what a claim costs, wei; ``None`` while none was ever made.
    """

    now: datetime
    terms: Terms
    usdc: str | None
    usual_cost: int | None

    def dispute_until(self, session: Session) -> datetime:
        """Until when only the depositor may end the job."""
        return (session.job_started_at or session.created_at) + self.terms.dispute_window

    def earliest_claim(self, session: Session, *, tokens: int) -> datetime:
        """When the rate rule first allows to claim ``tokens`` of the job."""
        return self.terms.earliest_claim(tokens, since=last_claim_at(session), rate=session.tokens_per_second)

    def token_value(self, session: Session) -> policy.TokenValue | None:
        """What a token of the job brings this host, in wei; ``None`` where nobody can tell."""
        native = session.payment_token == NATIVE_COIN
        if not native and session.payment_token != self.usdc:
            return None
        return policy.token_value(
            price=session.price_per_token,
            price_precision=session.price_precision,
            fee_basis_points=self.terms.fee_basis_points,
            native=native,
            native_price_usdc=settings.ENVIRONMENT.native_price_usdc,
        )


def read_pace(chain: HostChain) -> Pace:
    """Three questions to the chain, whatever the number of rows."""
    cost = None
    if chain.signer is not None:
        cost = quotes.usual_cost(
            chain.client, kind=TransactionKind.CLAIM, sender=chain.signer.address, limits=chain.limits
        )
    usdc = chain.deployment.usdc
    return Pace(
        now=chain_now(chain),
        terms=chain.marketplace.terms(chain.client),
        usdc=None if usdc is None else usdc.lower(),
        usual_cost=cost,
    )


def chain_now(chain: HostChain) -> datetime:
    """The time by which the marketplace will judge: never before its newest block."""
    return max(timezone.now(), chain.client.head().time)


def last_claim_at(session: Session) -> datetime:
    """From when the rate rule counts: the block of the job's last claim, or its start."""
    return session.last_claim_at or session.job_started_at or session.created_at


def forced_at(session: Session) -> datetime | None:
    """When the job's tokens are to be claimed at the latest."""
    seconds = session.idle_timeout_seconds
    return policy.forced_at(
        started_at=session.job_started_at,
        expires_at=session.job_expires_at,
        last_claim_at=session.last_claim_at,
        idle_timeout=None if seconds is None else timedelta(seconds=seconds),
    )
