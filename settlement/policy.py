"""When to claim, as pure rules: thresholds, age, and the marketplace's rate.

Knows neither database nor chain; times are given. Tokens are completion token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from settlement.chain.marketplaces import Capabilities, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingRule:
    """The operator's part: claim at ``threshold`` tokens, or once they are older than ``max_age``."""

    threshold: int
    max_age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """Counted tokens of a session that no checkpoint holds yet, and what matters about them."""

    tokens: int
    oldest_at: datetime
    last_claim_at: datetime
    ending: bool


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
    range does not wait; one that ends is claimed whole, and the submission waits if it must.
    """
    minimum = max(terms.minimum_claim, capabilities.minimum_claim)
    if unsealed.ending:
        if capabilities.closing_claim:
            return Seal(tokens=unsealed.tokens, closing=True) if unsealed.tokens else None
        return Seal(tokens=unsealed.tokens, closing=False) if unsealed.tokens >= minimum else None
    due = unsealed.tokens >= rule.threshold or now - unsealed.oldest_at >= rule.max_age
    if not due or unsealed.tokens < minimum:
        return None
    allowed = terms.allowed_tokens(since=unsealed.last_claim_at, now=now)
    tokens = min(unsealed.tokens, allowed)
    return Seal(tokens=tokens, closing=False) if tokens >= minimum else None
