"""Where a text ends at a stop string, and what is held back until that is known."""

from __future__ import annotations

import itertools
import random

import pytest

from jobs.inference.detokenizer import Utf8Detokenizer
from jobs.inference.scheduler import Scheduler
from jobs.inference.scripted import Script, ScriptedGenerator
from jobs.inference.shelf import ready
from jobs.inference.text_stream import TextStream
from tests.plugins.model import ids_of, request, text_of


def streamed(pieces: list[bytes], *stop: str) -> tuple[list[str], int | None]:
    """The texts of the steps, where each piece is one token, and the number of tokens until the stop."""
    stream = TextStream(Utf8Detokenizer(lambda token: pieces[token]), stop=stop)
    texts = []
    for token in range(len(pieces)):
        texts.append(stream.push(token))
        if stream.stopped:
            return texts, token + 1
    return [*texts, stream.flush()], None


def test_text_that_may_become_a_stop_is_held_back() -> None:
    assert streamed([b"Hello ", b"EN", b"DS"], "END") == (["Hello ", "", ""], 3)
    assert streamed([b"Hello ", b"EN", b"TRY"], "END") == (["Hello ", "", "ENTRY", ""], None)
    assert streamed([b"Hello ", b"EN"], "END") == (["Hello ", "", "EN"], None)


def test_what_is_held_shrinks_to_the_longest_possible_beginning() -> None:
    assert streamed([b"aaa", b"ab"], "aab") == (["a", "a"], 2)
    assert streamed([b"aaa", b"c"], "aab") == (["a", "aac", ""], None)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("xaby", ("ab", "xaby"), "x"),  # completed first
        ("xab", ("ab", "xab"), ""),  # completed by the same character: the longest
        ("no stop here", ("absent",), "no stop here"),
        ("日本語。終わり", ("。",), "日本語"),
        ("a🎉🎊b", ("🎊",), "a🎉"),
        ("line\n\nnext", ("\n\n",), "line"),
        ("END", ("END",), ""),
        ("aaaa", ("aa",), ""),
    ],
)
def test_the_end_does_not_depend_on_how_characters_are_split(text: str, stops: tuple[str, ...], expected: str) -> None:
    data = text.encode()
    cuts = list(itertools.chain.from_iterable(itertools.combinations(range(1, len(data)), n) for n in range(3)))
    for cut in [*cuts, tuple(range(1, len(data)))]:
        edges = [0, *cut, len(data)]
        pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
        texts, _ = streamed(pieces, *stops)
        assert "".join(texts) == expected, cut


def test_any_split_of_any_text_ends_like_character_by_character() -> None:
    generator = random.Random(4)
    for _ in range(2000):
        text = "".join(generator.choice("abé") for _ in range(generator.randrange(1, 12)))
        stops = tuple(
            "".join(generator.choice("abé") for _ in range(generator.randrange(1, 5)))
            for _ in range(generator.randrange(1, 4))
        )
        data = text.encode()
        edges = sorted({0, len(data), *(generator.randrange(len(data) + 1) for _ in range(4))})
        split = [data[start:end] for start, end in itertools.pairwise(edges)]
        whole, _ = streamed([bytes((byte,)) for byte in data], *stops)
        assert "".join(streamed(split, *stops)[0]) == "".join(whole), (text, stops, split)


async def test_ids_up_to_the_one_that_completes_the_stop_are_delivered() -> None:
    engine = Scheduler([ready(ScriptedGenerator("scripted", script=Script(text="abc STOP def ")))], queue_size=4)
    chunks = [chunk async for chunk in engine.generate(request(stop=("STOP",), max_tokens=100))]
    await engine.close()
    assert bytes(ids_of(chunks)) == b"abc STOP"
    assert text_of(chunks) == "abc "
    assert chunks[-1].finish_reason == "stop"


async def test_a_beginning_of_a_stop_is_given_out_when_the_limit_ends_it() -> None:
    engine = Scheduler([ready(ScriptedGenerator("scripted", script=Script(text="abc STOP def ")))], queue_size=4)
    chunks = [chunk async for chunk in engine.generate(request(stop=("STOP",), max_tokens=6))]
    await engine.close()
    assert text_of(chunks) == "abc ST"
    assert chunks[-1].finish_reason == "length"


async def test_each_row_of_a_batch_has_its_own_stop() -> None:
    script = Script(text="one two three ", replicas=1, batch_rows=8)
    engine = Scheduler([ready(ScriptedGenerator("scripted", script=script))], queue_size=4)
    first = engine.generate(request(request_id="1", stop=("two",), max_tokens=100))
    second = engine.generate(request(request_id="2", stop=("three",), max_tokens=100))
    replies = [[chunk async for chunk in stream] for stream in (first, second)]
    await engine.close()
    assert [text_of(chunks) for chunks in replies] == ["one ", "one two "]
    assert [len(ids_of(chunks)) for chunks in replies] == [7, 13]
