"""A converted GGUF computes what the file says, and what is not understood is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from tokenizers import Tokenizer

from nodes.converted_model import ConvertedModel, UnsupportedModel
from nodes.gguf_conversion import convert_gguf
from nodes.model_manifest import TOKENIZER_FILE, CorruptModel, digest_directory, read_vocabulary
from nodes.model_vocabulary import check_vocabulary
from tests.nodes.small_gguf import (
    BASE,
    CONTEXT,
    EPSILON,
    HEAD,
    HEADS,
    HEADS_KV,
    LAYERS,
    TOKENS,
    Array,
    Edit,
    tensors_of_a_small_model,
    write_gguf,
)


def convert(directory: Path, edit: Edit | None = None, *, quantization: str = "float32") -> ConvertedModel:
    directory.mkdir(exist_ok=True)
    write_gguf(directory / "model.gguf", edit)
    target = directory / "converted"
    target.mkdir()
    return convert_gguf(directory / "model.gguf", target, quantization=quantization)


def reference_logits(tensors: dict[str, Array], ids: list[int]) -> Array:
    """A Llama forward pass as llama.cpp defines it: rotary embedding on neighbouring pairs."""

    def norm(x: Array, gamma: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * gamma

    def rotated(x: Array) -> Array:
        angle = np.outer(np.arange(len(ids)), BASE ** (-np.arange(0, HEAD, 2) / HEAD))[:, None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out

    hidden = tensors["token_embd.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for number in range(LAYERS):
        layer = {name: tensors[f"blk.{number}.{name}.weight"] for name in LAYER_TENSORS}
        x = norm(hidden, layer["attn_norm"])
        q = rotated((x @ layer["attn_q"].T).reshape(len(ids), HEADS, HEAD))
        k = rotated((x @ layer["attn_k"].T).reshape(len(ids), HEADS_KV, HEAD)).repeat(HEADS // HEADS_KV, 1)
        v = (x @ layer["attn_v"].T).reshape(len(ids), HEADS_KV, HEAD).repeat(HEADS // HEADS_KV, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(ids), HEADS * HEAD)
        hidden = hidden + mixed @ layer["attn_output"].T
        x = norm(hidden, layer["ffn_norm"])
        gate = x @ layer["ffn_gate"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (x @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    projection = tensors.get("output.weight", tensors["token_embd.weight"])
    return norm(hidden, tensors["output_norm.weight"]) @ projection.T


LAYER_TENSORS = [
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
]


def converted_logits(directory: Path, ids: list[int]) -> Array:
    generator = ctranslate2.Generator(str(directory), compute_type="float32")
    logits = np.array(generator.forward_batch([[TOKENS[number] for number in ids]]))[0]
    del generator
    return logits


def untie(metadata: dict[str, Any], tensors: dict[str, Array]) -> None:
    tensors["output.weight"] = tensors_of_a_small_model(seed=2)["token_embd.weight"]


@pytest.mark.parametrize("edit", [None, untie], ids=["tied", "untied"])
def test_the_converted_model_computes_the_same(tmp_path: Path, edit: Edit | None) -> None:
    converted = convert(tmp_path, edit)
    tensors = tensors_of_a_small_model()
    if edit is not None:
        edit({}, tensors)
    ids = [1, 40, 261, 7, 100, 2, 1, 55, 260, 9]
    expected, found = reference_logits(tensors, ids), converted_logits(tmp_path / "converted", ids)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert converted.check is not None
    assert (converted.check.tokens, converted.check.agreement, converted.check.perplexity_ratio) == (63, 1.0, 1.0)
    assert replace(converted, check=None) == ConvertedModel(
        architecture="llama",
        context_length=CONTEXT,
        vocabulary_size=len(TOKENS),
        bos_token_id=1,
        eos_token_id=2,
        end_token_ids=(0, 2),
        quantization="float32",
    )


def test_eight_bit_weights_are_close(tmp_path: Path) -> None:
    convert(tmp_path, quantization="int8")
    ids = [1, 40, 261, 7, 100, 2, 1, 55]
    expected = reference_logits(tensors_of_a_small_model(), ids)
    found = converted_logits(tmp_path / "converted", ids)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_conversion_is_reproducible_to_the_byte(tmp_path: Path) -> None:
    convert(tmp_path / "a", quantization="int8")
    convert(tmp_path / "b", quantization="int8")
    assert digest_directory(tmp_path / "a" / "converted") == digest_directory(tmp_path / "b" / "converted")


def test_the_tokenizer_agrees_with_the_vocabulary(tmp_path: Path) -> None:
    convert(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "converted" / TOKENIZER_FILE))
    check_vocabulary(read_vocabulary(tmp_path / "converted"), tokenizer=tokenizer)
    assert tokenizer.encode("<|im_start|>hello world 42").tokens == [
        *("<|im_start|>", "hel", "l", "o", "Ġw", "o", "r", "l", "d", "Ġ", "4", "2")
    ]


MULTILINGUAL = [
    "The quick brown fox, 2024-11-22: it's $1,234.50!",
    "Zażółć gęślą jaźń — naïve café",
    "Съешь ещё этих мягких французских булок",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "مرحبا بالعالم שלום עולם नमस्ते",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🎉",
    "\tdef f(x):\n        return x ** 2\n\n\n",
]


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_the_default_models_tokenizer_round_trips(default_model_path: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(default_model_path / TOKENIZER_FILE))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_default_models_tokenizer_splits_digits(default_model_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(default_model_path / TOKENIZER_FILE))
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]


def set_field(name: str, value: Any) -> Edit:
    return lambda metadata, tensors: metadata.update({name: value})


def drop_field(name: str) -> Edit:
    return lambda metadata, tensors: metadata.pop(name) and None


def add_tensor(name: str) -> Edit:
    return lambda metadata, tensors: tensors.update({name: np.ones(4, dtype=np.float32)})


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_field("general.architecture", "gemma"), "'gemma' is not supported"),
        (set_field("llama.expert_count", 8), "experts"),
        (set_field("llama.rope.scaling.type", "yarn"), "yarn"),
        (set_field("llama.rope.scaling.type", "dynamic"), "dynamic"),
        (set_field("llama.attention.value_length", 16), "value_length"),
        (set_field("llama.rope.dimension_count", 4), "dimension_count"),
        (set_field("llama.attention.head_count_kv", [2, 1]), "head_count_kv"),
        (set_field("llama.logit_scale", 0.5), "logit_scale"),
        (set_field("tokenizer.ggml.model", "t5"), "'t5' is not supported"),
        (set_field("tokenizer.ggml.model", "llama"), "no list of token scores"),
        (set_field("tokenizer.ggml.pre", "default"), "'default'"),
        (set_field("tokenizer.ggml.pre", "falcon"), "'falcon'"),
        (drop_field("tokenizer.chat_template"), "no chat template"),
        (drop_field("tokenizer.ggml.merges"), "no list of merges"),
        (set_field("tokenizer.ggml.eos_token_id", 10**6), "contradicts itself"),
        (add_tensor("rope_factors_long.weight"), "rope_factors_long"),
        (add_tensor("blk.0.attn_output.bias"), "attn_output.bias"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, edit: Edit, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named) as caught:
        convert(tmp_path, edit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (drop_field("llama.context_length"), "context_length"),
        (lambda metadata, tensors: tensors.pop("blk.1.ffn_up.weight"), "no tensor blk.1.ffn_up"),
        (add_tensor("blk.0.attn_q.bias"), r"shape \(4,\), the file's metadata say \(32,\)"),
        (set_field("llama.attention.head_count_kv", 3), "heads make no sense"),
        (lambda metadata, tensors: tensors["output_norm.weight"].fill(np.nan), "not numbers"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, edit: Edit, named: str) -> None:
    with pytest.raises(CorruptModel, match=named):
        convert(tmp_path, edit)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    whole, cut, target = tmp_path / "model.gguf", tmp_path / "cut.gguf", tmp_path / "target"
    write_gguf(whole)
    shutil.copy(whole, cut)
    with cut.open("r+b") as stream:
        stream.truncate(int(whole.stat().st_size * share))
    target.mkdir()
    with pytest.raises(CorruptModel, match="complete GGUF"):
        convert_gguf(cut, target)
    assert not list(target.iterdir())


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(CorruptModel, match="complete GGUF"):
        convert_gguf(tmp_path / "x.gguf", tmp_path)
    with pytest.raises(CorruptModel, match="does not exist"):
        convert_gguf(tmp_path / "none.gguf", tmp_path)
