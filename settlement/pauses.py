"""How long to wait before the next try, as a pure rule."""

from __future__ import annotations

from datetime import timedelta

from eth_utils.crypto import keccak

LONGEST_PAUSE = timedelta(minutes=10)


def pause(row_id: int, *, tries: int, first: timedelta) -> timedelta:
    """Twice as long after each try, up to ``LONGEST_PAUSE``, and up to a tenth more.

    That tenth is the row's own, and the same whenever it is computed: rows that were refused together
    do not come back together, and nothing about a wait is left to chance.
    """
    base = min(LONGEST_PAUSE, first * int(2 ** min(tries, 10)))
    spread = int.from_bytes(keccak(text=f"{row_id}:{tries}")[:4], "big") / 2**32
    return base + base * spread / 10
