"""Lives side by side: each lane is a process with an anvil, a laboratory and databases of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing.util import Finalize
from pathlib import Path

from settlement.chain import local
from tests.faults.crash_matrix import Outcome, Plan, die_at
from tests.faults.laboratory import Laboratory

# A chain keeps every state it ever had in memory, so a lane takes a new one now and then.
LIVES_OF_A_CHAIN = 150


class Lane:
    """A laboratory on a chain of its own, renewed when it has seen enough."""

    def __init__(self, *, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self._stack = ExitStack()
        self._laboratories = self._lives = 0

    def play(self, plan: Plan) -> Outcome:
        if self._lives % LIVES_OF_A_CHAIN == 0:
            self.close()
            self._laboratory = self._open()
        self._lives += 1
        return die_at(self._laboratory, plan)

    def _open(self) -> Laboratory:
        self._laboratories += 1
        folder = self._folder / f"lane-{os.getpid()}-{self._laboratories}"
        folder.mkdir()
        anvil = self._stack.enter_context(local.TemporaryAnvil(binary=self._binary))
        return self._stack.enter_context(Laboratory(anvil.url, folder=folder))

    def close(self) -> None:
        self._stack.close()


# Of the process that is a lane.
_lanes: list[Lane] = []


def play(plans: Sequence[Plan], *, lanes: int, binary: Path, folder: Path) -> Iterator[Outcome]:
    """The outcome of each life, in the order in which they end; in about the order of ``plans``."""
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(lanes, mp_context=spawning, initializer=_be_a_lane, initargs=(binary, folder))
    try:
        lives = [pool.submit(_play, plan) for plan in plans]
        for life in as_completed(lives):
            yield life.result()
    finally:
        # Whoever stops listening wants no more of them played.
        pool.shutdown(cancel_futures=True)


def _be_a_lane(binary: Path, folder: Path) -> None:
    lane = Lane(binary=binary, folder=folder)
    _lanes.append(lane)
    # A pool's process runs no atexit functions, and these.
    Finalize(None, lane.close, exitpriority=10)


def _play(plan: Plan) -> Outcome:
    return _lanes[0].play(plan)
