"""Tokenizers rebuilt from GGUF metadata cut texts as the originals do."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from nodes.gguf_tokenizer import GgufTokenizer, UnsupportedTokenizer
from nodes.model_vocabulary import check_vocabulary
from nodes.token_splitting import SPLITTINGS
from tests.nodes.small_gguf import PIECES, TEMPLATE, byte_tokens, metadata_of_a_small_model, sentencepiece_fields

TEXTS = [
    "The old lighthouse on the cliff was built in 1874.",
    "  two  spaces and\ttab\r\n\r\n  indented",
    "Zażółć gęślą jaźń — naïve café",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "<0x41> and ▁ as they are written",
]


def sentencepiece(**fields: Any) -> Tokenizer:
    metadata = metadata_of_a_small_model() | sentencepiece_fields() | fields
    return GgufTokenizer.from_metadata(metadata).tokenizer()


def byte_level(splitting: str) -> Tokenizer:
    """A vocabulary of bytes only: the tokens show nothing, so the pieces are looked at."""
    metadata = metadata_of_a_small_model() | {"tokenizer.ggml.pre": splitting}
    return GgufTokenizer.from_metadata(metadata).tokenizer()


def pieces(splitting: str, text: str) -> list[str]:
    tokenizer = byte_level(splitting)
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("text", TEXTS[:-1])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_round_trips_any_text(text: str, prefix: bool) -> None:
    tokenizer = sentencepiece(**{"tokenizer.ggml.add_space_prefix": prefix})
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_merges_the_best_score_first() -> None:
    assert sentencepiece().encode("the old hen").tokens == ["▁the", "▁", "o", "l", "d", "▁", "he", "n"]


def test_sentencepiece_begins_a_text_as_if_after_a_space_if_the_file_says_so() -> None:
    assert sentencepiece().encode("the").tokens == ["▁the"]
    assert sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}).encode("the").tokens == ["t", "he"]


def test_what_sentencepiece_does_not_know_becomes_bytes() -> None:
    tokenizer = sentencepiece(**{"tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.encode("é").tokens == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("é").ids) == "é"


def test_a_text_never_becomes_a_byte_token() -> None:
    tokens = sentencepiece().encode("<0x41>").tokens
    assert "<0x41>" not in tokens
    assert "<0x3C>" in tokens


def test_control_tokens_are_found_and_ids_kept() -> None:
    tokenizer = sentencepiece()
    check_vocabulary(PIECES, tokenizer=tokenizer)
    assert tokenizer.encode("<s>the</s>").ids[0] == 1
    assert tokenizer.encode("<s>the</s>").ids[-1] == 2
    tokenizer.encode_special_tokens = True
    assert 2 not in tokenizer.encode("<s>the</s>").ids


@pytest.mark.parametrize("splitting", sorted(SPLITTINGS))
@pytest.mark.parametrize("text", TEXTS)
def test_each_splitting_rule_round_trips(splitting: str, text: str) -> None:
    tokenizer = byte_level(splitting)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("splitting", "expected"),
    [
        ("gpt-2", ["It", "'s", " parserHTML", " 12345", "!!", "\n\n ", " x"]),
        ("smollm", ["It", "'s", " parserHTML", " ", "1", "2", "3", "4", "5", "!!", "\n\n ", " x"]),
        ("llama-bpe", ["It", "'s", " parserHTML", " ", "123", "45", "!!\n\n", " ", " x"]),
        ("qwen2", ["It", "'s", " parserHTML", " ", "1", "2", "3", "4", "5", "!!\n\n", " ", " x"]),
        ("tekken", ["It", "'s", " parser", "HTML", " ", "1", "2", "3", "4", "5", "!!\n\n", " ", " x"]),
    ],
)
def test_each_splitting_rule_cuts_in_its_own_places(splitting: str, expected: list[str]) -> None:
    assert pieces(splitting, "It's parserHTML 12345!!\n\n  x") == expected


def test_composed_characters_are_composed_for_qwen() -> None:
    decomposed = "e\u0301"
    assert byte_level("qwen2").encode(decomposed).ids == byte_level("qwen2").encode("é").ids
    assert byte_level("llama-bpe").encode(decomposed).ids != byte_level("llama-bpe").encode("é").ids


def test_a_piece_that_is_a_token_is_taken_whole_for_llama3_only() -> None:
    """No merge leads to "hey": only the rule that looks for whole pieces first finds it."""
    fields = {"tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "he", "hey"]}
    fields |= {"tokenizer.ggml.token_type": [3, 3, 3] + [1] * 258, "tokenizer.ggml.merges": ["h e"]}
    found = {}
    for splitting in ("llama-bpe", "tekken", "qwen2"):
        metadata = metadata_of_a_small_model() | fields | {"tokenizer.ggml.pre": splitting}
        found[splitting] = GgufTokenizer.from_metadata(metadata).tokenizer().encode("hey").tokens
    assert found == {"llama-bpe": ["hey"], "tekken": ["hey"], "qwen2": ["he", "y"]}


def test_every_end_token_ends_an_answer() -> None:
    metadata = metadata_of_a_small_model() | {"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 7}
    assert GgufTokenizer.from_metadata(metadata).end_token_ids == (0, 1, 2, 7)


def test_a_given_chat_template_wins() -> None:
    metadata = metadata_of_a_small_model()
    assert GgufTokenizer.from_metadata(metadata).chat_template == TEMPLATE
    assert GgufTokenizer.from_metadata(metadata, chat_template="{{ x }}").chat_template == "{{ x }}"
    metadata.pop("tokenizer.chat_template")
    assert GgufTokenizer.from_metadata(metadata, chat_template="{{ x }}").chat_template == "{{ x }}"
    with pytest.raises(UnsupportedTokenizer, match="--chat-template FILE"):
        GgufTokenizer.from_metadata(metadata)


def test_a_user_defined_token_with_a_space_sign_is_refused_by_name() -> None:
    types = sentencepiece_fields()["tokenizer.ggml.token_type"]
    types[PIECES.index("▁the")] = 4
    with pytest.raises(UnsupportedTokenizer, match="'▁the' contains a space sign"):
        sentencepiece(**{"tokenizer.ggml.token_type": types})
