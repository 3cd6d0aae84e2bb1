"""Which requests to compute together: a cost model and the cheapest grouping under it.

CTranslate2 computes the rows of a batch up to their shortest prompt at once and everything after
that step by step, also what is left of the longer prompts. Rows of unequal length therefore cost the
steps of their difference, and are worth merging only if they save more. Guarantees nothing about
order (``waiting`` does); pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A request as the cost model sees it: ``context`` token ids to read, ``tokens`` expected to be written."""

    context: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Costs in units of one decode step's fixed part (reading the weights once).

    ``row`` is what each row adds to a step, ``position`` what each token id in a row's context adds
    to that, ``prefill`` a prompt token that is computed at once.
    """

    row: float
    position: float
    prefill: float

    def batch(self, rows: Sequence[Size]) -> float:
        """The cost of computing ``rows`` together from the start."""
        common = min(row.context for row in rows)
        return self.prefill * common * len(rows) + self._steps(rows, common=common)

    def rest(self, rows: Sequence[Size]) -> float:
        """The cost of what is left of a running batch, whose contexts are in memory."""
        return self._steps(rows, common=max((row.context for row in rows), default=0))

    def _steps(self, rows: Sequence[Size], *, common: int) -> float:
        steps = 0
        cost = 0.0
        for row in rows:
            own = max(0, row.context - common) + row.tokens
            steps = max(steps, own)
            cost += own * (self.row + self.position * (min(row.context, common) + own / 2))
        return steps + cost


# Measured 2026-11-22 with SmolLM2-135M-Instruct, int8, one thread, in ms of CPU time (best of three). A decode step
# of 1, 2, 4, 8 rows takes 22, 26, 36, 57 at 100 tokens of context and 29, 43, 61, 104 at 400; a prompt token 1.0 to
# 1.4. Least squares over 19 such points: 18.6 + rows · (1.9 + 0.023 · context). For 32 prompts of 20 to 800 tokens
# the cheapest grouping by this model took 71 s; the best of the fixed rules that were tried (at most 8 rows within
# 32 tokens of each other) took 77 s.
CPU_COSTS = CostModel(row=0.10, position=0.00125, prefill=0.065)
# Measured on an H100 with the same model, int8_float16: a step takes 9.0 to 10.6 ms whatever is in it, 1 to 128 rows at
# 40 or 400 tokens of context, and a prompt token of a large batch 0.007 ms; in float16 steps of 4.3 to 7.3 ms, 10.9 for
# 128 rows at 400 tokens, and 0.005 ms. Launching kernels is what takes the time there. With a larger model more of a
# step is reading weights and a prompt token costs more beside it: prefill is set between the two.
CUDA_COSTS = CostModel(row=0.002, position=0.00002, prefill=0.002)


def group(sizes: Sequence[Size], *, most: int, costs: CostModel) -> list[list[int]]:
    """The cheapest grouping, as lists of indexes into ``sizes``, none longer than ``most``.

    Requests of neighbouring lengths are grouped; of equally cheap groupings the one whose first
    groups, with the shortest prompts, are the largest.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index].context)
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(order) + 1)
    for first in range(len(order) - 1, -1, -1):
        options = []
        for count in range(1, min(most, len(order) - first) + 1):
            rows = [sizes[index] for index in order[first : first + count]]
            # Rounded, so that equally cheap groupings compare equal.
            options.append((round(costs.batch(rows) + best[first + count][0], 6), -count))
        cost, negative = min(options)
        best[first] = (cost, -negative)
    groups = []
    first = 0
    while first < len(order):
        count = best[first][1]
        groups.append(order[first : first + count])
        first += count
    return groups
