"""A converted GGUF computes what the file says, and what is not understood is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nodes.gguf_conversion import ConvertedModel, UnsupportedModel, convert_gguf
from nodes.model_manifest import TOKENIZER_FILE, CorruptModel, digest_directory, read_vocabulary
from nodes.model_vocabulary import check_vocabulary

LAYERS, HEADS, HEADS_KV, HEAD, WIDTH, INNER, CONTEXT = 2, 4, 2, 8, 32, 48, 64
EPSILON, BASE = 1e-5, 5000.0
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"

Array = NDArray[np.float32]
Edit = Callable[[dict[str, Any], dict[str, Array]], None]


def byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "he", "hel", "Ġw"]


def tensors_of_a_small_model(seed: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return (random.standard_normal(shape) * 0.2).astype(np.float32)

    tensors = {"token_embd.weight": weights(len(TOKENS), WIDTH), "output_norm.weight": 1 + weights(WIDTH)}
    for number in range(LAYERS):
        tensors |= {
            f"blk.{number}.attn_norm.weight": 1 + weights(WIDTH),
            f"blk.{number}.attn_q.weight": weights(HEADS * HEAD, WIDTH),
            f"blk.{number}.attn_k.weight": weights(HEADS_KV * HEAD, WIDTH),
            f"blk.{number}.attn_v.weight": weights(HEADS_KV * HEAD, WIDTH),
            f"blk.{number}.attn_output.weight": weights(WIDTH, HEADS * HEAD),
            f"blk.{number}.ffn_norm.weight": 1 + weights(WIDTH),
            f"blk.{number}.ffn_gate.weight": weights(INNER, WIDTH),
            f"blk.{number}.ffn_up.weight": weights(INNER, WIDTH),
            f"blk.{number}.ffn_down.weight": weights(WIDTH, INNER),
        }
    return tensors


def metadata_of_a_small_model() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS_KV,
        "llama.rope.freq_base": BASE,
        "llama.attention.layer_norm_rms_epsilon": EPSILON,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": ["h e", "he l", "Ġ w"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(path: Path, edit: Edit | None = None) -> dict[str, Array]:
    """Write a small random model; ``edit`` may change its metadata and tensors first."""
    metadata, tensors = metadata_of_a_small_model(), tensors_of_a_small_model()
    if edit is not None:
        edit(metadata, tensors)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    for name, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


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
    assert converted == ConvertedModel(
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
        (set_field("general.architecture", "qwen2"), "'qwen2' is not supported"),
        (set_field("llama.expert_count", 8), "experts"),
        (set_field("llama.rope.scaling.type", "yarn"), "yarn"),
        (set_field("tokenizer.ggml.model", "llama"), "byte-level"),
        (set_field("tokenizer.ggml.pre", "tekken"), "tekken"),
        (drop_field("tokenizer.chat_template"), "no chat template"),
        (drop_field("tokenizer.ggml.merges"), "no list of merges"),
        (set_field("tokenizer.ggml.eos_token_id", 10**6), "contradicts itself"),
        (add_tensor("rope_freqs.weight"), "rope_freqs"),
        (add_tensor("blk.0.attn_q.bias"), "attn_q.bias"),
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
