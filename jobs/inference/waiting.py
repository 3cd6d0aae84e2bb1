"""The requests of one model that wait for a replica, and whose turn it is.

Order: higher ``priority`` first, where every ``AGE_SECONDS`` of waiting count as one step of
priority, so that nothing starves; then names of ``fair_share`` take turns, those with fewer requests
running first, then those served longest ago; then by arrival. Guarantees: at most ``capacity`` new
requests wait. Knows neither replicas nor threads.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from jobs.inference.generation import Generation

AGE_SECONDS = 30.0
_REMEMBERED_NAMES = 4096


class WaitingRequests:
    """The requests that are ready to run, and the number of those that still get ready."""

    def __init__(self, *, capacity: int) -> None:
        self.capacity = capacity
        self.preparing = 0
        self.last_arrival = 0.0
        self.others_coming = False
        self._rows: list[Generation] = []
        self._turns = itertools.count(1)
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Generation]:
        return iter(self._rows)

    @property
    def new(self) -> int:
        """How many wait that have not run yet: those which the capacity limits."""
        return self.preparing + sum(not row.has_run for row in self._rows)

    def add(self, row: Generation) -> None:
        """Let it wait from now on."""
        row.arrived = time.monotonic()
        if not row.has_run:
            self.last_arrival = row.arrived
            self.others_coming = row.request.others_coming > 0
        self._rows.append(row)

    def remove(self, rows: Iterable[Generation]) -> None:
        """They have ended."""
        gone = set(rows)
        self._rows = [row for row in self._rows if row not in gone]

    def serve(self, rows: Iterable[Generation]) -> None:
        """They run now: the others of their names go behind names that were served longer ago."""
        served = list(rows)
        self.remove(served)
        for row in served:
            if row.request.fair_share:
                self._served.pop(row.request.fair_share, None)
                self._served[row.request.fair_share] = next(self._turns)
        while len(self._served) > _REMEMBERED_NAMES:
            del self._served[next(iter(self._served))]

    def in_turn(self, *, running: Iterable[Generation] = ()) -> list[Generation]:
        """All of them, the one whose turn it is first."""
        now = time.monotonic()
        places = Counter(_name(row) for row in running)
        turns = {}
        for row in sorted(self._rows, key=lambda row: row.arrived):
            turns[row] = places[_name(row)]
            places[_name(row)] += 1
        return sorted(
            self._rows,
            key=lambda row: (
                -(row.request.priority + (now - row.arrived) // AGE_SECONDS),
                turns[row],
                self._served.get(row.request.fair_share, 0),
                row.arrived,
            ),
        )


def _name(row: Generation) -> object:
    """Whom a request counts for; one without a name counts for itself."""
    return row.request.fair_share or row
