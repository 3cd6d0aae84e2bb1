"""When to claim, as pure rules: thresholds, age, what a claim is worth, deadlines, and the marketplace's rate.

Knows neither database nor chain; times are given. Tokens are completion token ids, costs are wei.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from settlement.amounts import EVERYTHING
from settlement.chain.marketplace import Capabilities, Terms

WEI_PER_COIN = 10**18

# So long before a job can be timed out its tokens are claimed whatever they are worth. Longer than what
# `jobs.sessions` needs to close it, so that an open session is claimed, and lives on, rather than closed.
FORCED_BEFORE_DEADLINE = timedelta(minutes=3)

# A claim may cost its value, or this many times what claims usually cost, whichever is more: a fee that
# rises for a while must not starve a claim that is worth making.
COST_HEADROOM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValue:
    """What a token of a job brings its host, in wei: ``numerator / denominator``."""

    numerator: int
    denominator: int

    def of(self, tokens: int) -> int:
        """wei, rounded down."""
        return tokens * self.numerator // self.denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingRule:
    """The operator's part: claim at ``threshold`` tokens, or once they are older than ``max_age``, where the
    claim brings ``value_to_gas`` times its usual cost. 0 switches that last rule off."""

    threshold: int
    max_age: timedelta
    value_to_gas: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """Counted tokens of a session that no checkpoint holds yet, and what matters about them.

    ``tokens_per_second`` is the rate of this job where the chain stated it, ``first_claim_tokens`` what the
    next claim must reach because it is the job's first. ``value`` and ``usual_cost``
    are ``None`` where they cannot be told; then the rule about value does not apply.
    """

    tokens: int
    oldest_at: datetime
    last_claim_at: datetime
    ending: bool
    tokens_per_second: int | None = None
    first_claim_tokens: int = 0
    forced_at: datetime | None = None
    dispute_until: datetime | None = None
    value: TokenValue | None = None
    usual_cost: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Seal ``tokens`` now; ``closing`` if that claim also completes the job."""

    tokens: int
    closing: bool


def seal(
    unsealed: Unsealed, *, now: datetime, rule: SealingRule, terms: Terms, capabilities: Capabilities
) -> Seal | None:
    """What to seal now, if anything.

    A session that goes on is claimed in ranges that the rate rule allows already, so that one large
    range does not wait; one that ends is claimed whole, and the submission waits if it must. While the
    host may not end the job yet, its last claim is made as an ordinary one where it is large enough:
    until then the depositor could end the job and leave it unpaid. Below the marketplace's minimum nothing
    is sealed: a claim is never padded. Nor does the rate cut a range so that less than that is left behind
    where no closing claim would take it.
    """
    later_minimum = max(terms.minimum_claim, capabilities.minimum_claim)
    minimum = max(later_minimum, unsealed.first_claim_tokens)
    allowed = terms.allowed_tokens(since=unsealed.last_claim_at, now=now, rate=unsealed.tokens_per_second)
    if unsealed.ending:
        if not capabilities.closing_claim:
            return Seal(tokens=unsealed.tokens, closing=False) if unsealed.tokens >= minimum else None
        disputed = unsealed.dispute_until is not None and now < unsealed.dispute_until
        if disputed and unsealed.tokens >= minimum:
            part = min(unsealed.tokens, allowed)
            return Seal(tokens=part, closing=False) if part >= minimum else None
        return Seal(tokens=unsealed.tokens, closing=True) if unsealed.tokens else None
    tokens = min(unsealed.tokens, allowed)
    if not capabilities.closing_claim and not _forced(unsealed, now=now):
        tokens = _leaving_enough(tokens, of=unsealed.tokens, minimum=later_minimum)
    if tokens < minimum:
        return None
    due = unsealed.tokens >= rule.threshold or now - unsealed.oldest_at >= rule.max_age
    if _forced(unsealed, now=now) or (due and _worth_it(unsealed, tokens=tokens, rule=rule)):
        return Seal(tokens=tokens, closing=False)
    return None


def _leaving_enough(tokens: int, *, of: int, minimum: int) -> int:
    """``tokens``, or fewer, so that what the rate leaves behind is nothing or can be claimed by itself.

    Where no closing claim takes what is below the minimum, it would be lost if the session ended there.
    """
    return of - minimum if 0 < of - tokens < minimum else tokens


def _forced(unsealed: Unsealed, *, now: datetime) -> bool:
    """A deadline is near, and no claim was made since it came near."""
    return unsealed.forced_at is not None and unsealed.last_claim_at < unsealed.forced_at <= now


def _worth_it(unsealed: Unsealed, *, tokens: int, rule: SealingRule) -> bool:
    if not rule.value_to_gas or unsealed.value is None or unsealed.usual_cost is None:
        return True
    return unsealed.value.of(tokens) >= rule.value_to_gas * unsealed.usual_cost


def forced_at(
    *,
    started_at: datetime | None,
    expires_at: datetime | None,
    last_claim_at: datetime | None,
    idle_timeout: timedelta | None,
) -> datetime | None:
    """When a job's tokens are to be claimed at the latest, so that no time-out overtakes them.

    ``FORCED_BEFORE_DEADLINE`` ahead of the job's end and of its idle time-out, or a quarter of the time
    that there is, where that is less. ``None`` without a deadline.
    """
    if started_at is None:
        return None
    moments = []
    if expires_at is not None:
        moments.append(expires_at - min(FORCED_BEFORE_DEADLINE, (expires_at - started_at) / 4))
    if idle_timeout is not None:
        since = last_claim_at or started_at
        moments.append(since + idle_timeout - min(FORCED_BEFORE_DEADLINE, idle_timeout / 4))
    return min(moments, default=None)


def token_value(
    *, price: int, price_precision: int, fee_basis_points: int, native: bool, native_price_usdc: int | None
) -> TokenValue | None:
    """The host's part of a token in wei. ``price`` is in base units of the job's token for
    ``price_precision`` tokens; for a job in USDC ``native_price_usdc`` (USDC base units for a whole native
    coin) converts it, and without that its value is unknown."""
    share = price * (EVERYTHING - fee_basis_points)
    scale = price_precision * EVERYTHING
    if native:
        return TokenValue(numerator=share, denominator=scale)
    if native_price_usdc is None:
        return None
    return TokenValue(numerator=share * WEI_PER_COIN, denominator=scale * native_price_usdc)


def cost_limit(*, tokens: int, value: TokenValue | None, usual_cost: int | None) -> int | None:
    """What a claim may cost at most, wei: its value or ``COST_HEADROOM`` usual costs, whichever is more.

    ``None``, which leaves only the operator's own limits, where either is unknown.
    """
    if value is None or usual_cost is None:
        return None
    return max(value.of(tokens), COST_HEADROOM * usual_cost)
