"""Text deltas add up to exactly what decoding all ids gives, and never split a character."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jobs.inference.detokenizer import DetokenizerFactory
from nodes.model_manifest import TOKENIZER_FILE

SAMPLES = [
    "plain ASCII, 12345 digits",
    "naïve café — «quotes» …",
    "日本語と中文와 한국어",
    "🎉 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽 skin",
    "नमस्ते ქართული עברית العربية",
    "combining é ñ and ½ Ⅷ ٣",
    "literal replacement \ufffd inside",
    "\n\n  leading space\tand tab ",
]


@pytest.fixture(scope="module")
def tokenizer(default_model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(default_model_path / TOKENIZER_FILE))


@pytest.fixture(scope="module")
def byte_fallback_tokenizer() -> Tokenizer:
    """A SentencePiece-like tokenizer, as Llama 2's: pieces with ▁ and byte tokens."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁Hello",
        "▁",
        "lo",
        "你",
        "a",
    ]
    model = models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        byte_fallback=True,
        unk_token="<unk>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@functools.cache
def factory(tokenizer: Tokenizer) -> DetokenizerFactory:
    return DetokenizerFactory(tokenizer)


@functools.cache
def single_byte_ids(tokenizer: Tokenizer) -> list[int]:
    return sorted(number for token, number in tokenizer.get_vocab().items() if len(token) == 1)


def deltas(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = factory(tokenizer).create()
    return [*(detokenizer.push([token]) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", SAMPLES)
def test_deltas_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(deltas(tokenizer, tokenizer.encode(text).ids)) == text


@pytest.mark.parametrize("text", SAMPLES)
def test_no_delta_ends_inside_a_character(tokenizer: Tokenizer, text: str) -> None:
    position = 0
    for delta in deltas(tokenizer, tokenizer.encode(text).ids):
        assert text[position : position + len(delta)] == delta
        position += len(delta)


def test_an_unfinished_character_is_flushed_as_a_full_decode_shows_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("end 日").ids[:-1]
    parts = deltas(tokenizer, ids)
    assert parts[-1] == "\ufffd"
    assert "".join(parts) == tokenizer.decode(ids)


def test_control_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>").ids
    assert "".join(deltas(tokenizer, ids)) == "hi"


def test_unknown_ids_have_no_text(tokenizer: Tokenizer) -> None:
    assert "".join(deltas(tokenizer, [10**6, *tokenizer.encode("hi").ids])) == "hi"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_ids_give_what_a_full_decode_gives(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_give_what_a_full_decode_gives(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Mostly broken UTF-8, made of the vocabulary's single-byte tokens."""
    ids = data.draw(st.lists(st.sampled_from(single_byte_ids(tokenizer)), max_size=40))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_byte_fallback_ids_give_what_a_full_decode_gives(
    byte_fallback_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_fallback_tokenizer.get_vocab_size() - 1), max_size=30))
    assert "".join(deltas(byte_fallback_tokenizer, ids)) == byte_fallback_tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_encoding_and_streaming(tokenizer: Tokenizer, text: str) -> None:
    """Without the few bytes that this model's vocabulary lacks, such as most control characters."""
    known = set(b"".join(factory(tokenizer).token_bytes(token) for token in single_byte_ids(tokenizer)))
    plain = "".join(character for character in text if known.issuperset(character.encode()))
    plain = plain.replace("<|", "< |")
    assert "".join(deltas(tokenizer, tokenizer.encode(plain).ids)) == plain
