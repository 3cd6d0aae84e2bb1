"""The grouping of requests by what they cost together."""

from __future__ import annotations

import itertools
import random

from jobs.inference.batching import CPU_COSTS, Size, group


def sizes(*contexts: int, tokens: int = 60) -> list[Size]:
    return [Size(context=context, tokens=tokens) for context in contexts]


def total(rows: list[Size], groups: list[list[int]]) -> float:
    return sum(CPU_COSTS.batch([rows[index] for index in indexes]) for indexes in groups)


def test_equal_requests_fill_batches() -> None:
    assert [len(indexes) for indexes in group(sizes(*[40] * 19), most=8, costs=CPU_COSTS)] == [8, 8, 3]


def test_distant_lengths_stay_apart() -> None:
    rows = sizes(50, 400, 52, 410, 48)
    assert sorted(map(sorted, group(rows, most=8, costs=CPU_COSTS))) == [[0, 2, 4], [1, 3]]


def test_the_longer_the_answers_the_more_difference_is_worth_it() -> None:
    assert len(group(sizes(50, 150, tokens=30), most=8, costs=CPU_COSTS)) == 2
    assert len(group(sizes(50, 150, tokens=400), most=8, costs=CPU_COSTS)) == 1


def test_the_longer_the_prompts_the_less_difference_is_worth_it() -> None:
    short, long = sizes(*[20, 40] * 4), sizes(*[780, 800] * 4)
    assert len(group(short, most=8, costs=CPU_COSTS)) == 1
    assert len(group(long, most=8, costs=CPU_COSTS)) == 2


def test_every_request_is_in_one_group() -> None:
    rows = sizes(*random.Random(1).choices(range(20, 800), k=64))
    groups = group(rows, most=8, costs=CPU_COSTS)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(64))
    assert max(map(len, groups)) <= 8


def test_no_other_grouping_of_neighbours_is_cheaper() -> None:
    generator = random.Random(2)
    for _ in range(20):
        rows = [Size(context=generator.randrange(20, 200), tokens=generator.randrange(1, 80)) for _ in range(7)]
        order = sorted(range(7), key=lambda index: rows[index].context)
        cheapest = min(
            total(rows, [order[start:end] for start, end in itertools.pairwise([0, *cut, 7])])
            for count in range(7)
            for cut in itertools.combinations(range(1, 7), count)
        )
        assert total(rows, group(rows, most=8, costs=CPU_COSTS)) <= cheapest + 1e-9


def test_grouping_mixed_lengths_is_cheaper_than_alone_or_first_come() -> None:
    rows = sizes(*random.Random(3).choices(range(20, 800), k=32))
    grouped = total(rows, group(rows, most=8, costs=CPU_COSTS))
    assert grouped < 0.85 * total(rows, [[index] for index in range(32)])
    assert grouped < 0.5 * total(rows, [list(range(start, start + 8)) for start in range(0, 32, 8)])
