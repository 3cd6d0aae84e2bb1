"""The ledger's invariants, checked against the database and against the chain.

Guarantees to name every violation it finds, with what to do; changes no row but the record of the last
check. I1 tracked = sum of usage rows; I2 every token in at most one checkpoint and claimed ≤ tracked; I3
what the chain accepted = confirmed checkpoints; I4 host + treasury = gross, with the treasury's share as
the contract computes it; I5 one nonce, one mined transaction; I6 no state moved backwards but by a reorg;
I7 nothing waits unattended; I8 the running totals are the sums of the earning rows, and every final
transaction's gas is among them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from django.utils import timezone

from settlement import chain_history, ledger_rows
from settlement.host_chain import HostChain
from settlement.models import LedgerCheck
from settlement.snapshot import snapshot
from settlement.violations import INVARIANTS, Violation

logger = logging.getLogger(__name__)

DATABASE, CHAIN = "database", "chain"
_CHECKED = {DATABASE: ("I1", "I2", "I4", "I5", "I6", "I7", "I8"), CHAIN: ("I3", "I4")}
# More than an operator reads on a page; the command prints them all.
_SHOWN = 50


def verify(chain: HostChain) -> list[Violation]:
    """Every violation in the database, and between it and the chain."""
    return [*verify_database(), *verify_against_chain(chain)]


def verify_database() -> list[Violation]:
    """What the database alone can show: all but I3 and the contract's part of I4. As of one moment."""
    checks = (
        ledger_rows.tracked_is_used,
        ledger_rows.ranges_tile,
        ledger_rows.credits_are_booked,
        ledger_rows.one_transaction_per_nonce,
        ledger_rows.no_step_backwards,
        ledger_rows.nothing_unattended,
        ledger_rows.totals_add_up,
        ledger_rows.gas_is_booked,
    )
    # A node that works moves money while it is checked: a sum read after its rows would not be theirs.
    with snapshot():
        return [violation for check in checks for violation in check()]


def verify_against_chain(chain: HostChain, *, ago: timedelta | None = None) -> Iterator[Violation]:
    """I3 and I4: the chain's own events against the confirmed checkpoints; ``ago``: that was done then."""
    stretch = chain_history.whole(chain) if ago is None else chain_history.since(chain, ago)
    terms = chain.marketplace.terms(chain.client)
    yield from chain_history.claims_match(chain, stretch)
    yield from chain_history.splits_are_right(chain, fee_basis_points=terms.fee_basis_points)


def check_database() -> int:
    """Check the database and keep the outcome for the front page and the metrics; returns the violations."""
    return _keep(DATABASE, verify_database(), deployment="", at=timezone.now())


def check_chain(chain: HostChain) -> int:
    """Check against the chain and keep the outcome; returns the violations.

    Reads the blocks since the last check, and all of them at first and as long as anything is wrong.
    """
    last = LedgerCheck.objects.filter(deployment=chain.key, part=CHAIN).first()
    begun = timezone.now()
    ago = None if last is None or sum(last.counts.values()) else max(begun - last.at, timedelta(0))
    return _keep(CHAIN, verify_against_chain(chain, ago=ago), deployment=chain.key, at=begun)


def mismatches() -> dict[str, int]:
    """Violations by invariant as of the last checks; invariants that were never checked are left out."""
    found: Counter[str] = Counter()
    for check in LedgerCheck.objects.all():
        found.update(check.counts)
        found.update(dict.fromkeys(_CHECKED.get(check.part, ()), 0))
    return {name: found[name] for name in INVARIANTS if name in found}


def _keep(part: str, violations: Iterable[Violation], *, deployment: str, at: datetime) -> int:
    counts: Counter[str] = Counter(dict.fromkeys(_CHECKED[part], 0))
    shown: list[dict[str, str]] = []
    for violation in violations:
        counts[violation.invariant] += 1
        if len(shown) < _SHOWN:
            shown.append({"invariant": violation.invariant, "message": violation.message, "remedy": violation.remedy})
    total = sum(counts.values())
    LedgerCheck.objects.update_or_create(
        deployment=deployment, part=part, defaults={"at": at, "counts": dict(counts), "findings": shown}
    )
    if total:
        logger.error(
            "%d violations in the %s ledger, first: %s", total, part, shown[0]["message"], extra={"event": "ledger"}
        )
    return total
