"""A broken invariant of the ledger, in words that an operator can act on."""

from __future__ import annotations

from dataclasses import dataclass

INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8")


@dataclass(frozen=True, slots=True)
class Violation:
    """Which invariant is broken, where, and what to do about it."""

    invariant: str
    message: str
    remedy: str
