"""Small random models of every supported architecture, written as GGUF files for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS, HEADS, HEADS_KV, HEAD, WIDTH, INNER, CONTEXT = 2, 4, 2, 8, 32, 48, 64
EPSILON, BASE = 1e-5, 5000.0
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"

Array = NDArray[np.float32]
Edit = Callable[[dict[str, Any], dict[str, Array]], None]
Type = gguf.GGMLQuantizationType


def byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "he", "hel", "Ġw"]

_PIECES = ["▁", "e", "t", "a", "o", "n", "h", "▁t", "he", "▁the", "▁w", "▁a", "in", "1", "2", "▁old"]
_LETTERS = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZbcdfgijklmpqrsuvwxyz.,'" if letter not in _PIECES]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES, *_LETTERS]


def tensors_of_a_small_model(
    seed: int = 1,
    *,
    head: int = HEAD,
    width: int = WIDTH,
    inner: int = INNER,
    vocabulary: int = len(TOKENS),
    biases: bool = False,
    query_key_norm: bool = False,
    layers: int = LAYERS,
) -> dict[str, Array]:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return (random.standard_normal(shape) * 0.2).astype(np.float32)

    tensors = {"token_embd.weight": weights(vocabulary, width), "output_norm.weight": 1 + weights(width)}
    for number in range(layers):
        tensors |= {
            f"blk.{number}.attn_norm.weight": 1 + weights(width),
            f"blk.{number}.attn_q.weight": weights(HEADS * head, width),
            f"blk.{number}.attn_k.weight": weights(HEADS_KV * head, width),
            f"blk.{number}.attn_v.weight": weights(HEADS_KV * head, width),
            f"blk.{number}.attn_output.weight": weights(width, HEADS * head),
            f"blk.{number}.ffn_norm.weight": 1 + weights(width),
            f"blk.{number}.ffn_gate.weight": weights(inner, width),
            f"blk.{number}.ffn_up.weight": weights(inner, width),
            f"blk.{number}.ffn_down.weight": weights(width, inner),
        }
        if biases:
            tensors |= {
                f"blk.{number}.attn_q.bias": weights(HEADS * head),
                f"blk.{number}.attn_k.bias": weights(HEADS_KV * head),
                f"blk.{number}.attn_v.bias": weights(HEADS_KV * head),
            }
        if query_key_norm:
            tensors |= {
                f"blk.{number}.attn_q_norm.weight": 1 + weights(head),
                f"blk.{number}.attn_k_norm.weight": 1 + weights(head),
            }
    return tensors


def metadata_of_a_small_model(
    architecture: str = "llama", *, width: int = WIDTH, inner: int = INNER, layers: int = LAYERS
) -> dict[str, Any]:
    own = {
        "block_count": layers,
        "context_length": CONTEXT,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS_KV,
        "rope.freq_base": BASE,
        "attention.layer_norm_rms_epsilon": EPSILON,
    }
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{name}": value for name, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": ["h e", "he l", "Ġ w"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def sentencepiece_fields() -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary: control, byte and ordinary tokens with their scores."""
    ordinary = len(PIECES) - 259
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(ordinary)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * ordinary,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def small_model(kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata and tensors of one of the kinds in ``KINDS``."""
    if kind == "llama":
        return metadata_of_a_small_model(), tensors_of_a_small_model()
    if kind == "qwen2":
        metadata = metadata_of_a_small_model("qwen2") | {"tokenizer.ggml.pre": "qwen2"}
        tensors = tensors_of_a_small_model(2, biases=True)
        return metadata, tensors | {"output.weight": tensors_of_a_small_model(3)["token_embd.weight"]}
    if kind == "qwen3":
        own = {"qwen3.attention.key_length": 16, "qwen3.attention.value_length": 16, "tokenizer.ggml.pre": "qwen2"}
        return metadata_of_a_small_model("qwen3") | own, tensors_of_a_small_model(4, head=16, query_key_norm=True)
    if kind == "smollm3":
        metadata = metadata_of_a_small_model("smollm3", layers=4) | {"tokenizer.ggml.pre": "llama-bpe"}
        return metadata, tensors_of_a_small_model(5, layers=4)
    metadata = metadata_of_a_small_model() | sentencepiece_fields() | {"llama.attention.key_length": 12}
    metadata.pop("tokenizer.ggml.merges")
    return metadata, tensors_of_a_small_model(6, head=12, vocabulary=len(PIECES))


KINDS = ("llama", "qwen2", "qwen3", "smollm3", "mistral-sentencepiece")


def write_gguf(path: Path, edit: Edit | None = None, *, kind: str = "llama") -> dict[str, Array]:
    """Write a small random model; ``edit`` may change its metadata and tensors first."""
    metadata, tensors = small_model(kind)
    if edit is not None:
        edit(metadata, tensors)
    write_file(path, metadata, tensors)
    return tensors


def write_file(
    path: Path, metadata: dict[str, Any], tensors: dict[str, Array], *, matrices: Type | None = None
) -> None:
    """Write the file; ``matrices`` is the type that matrices (not norms and biases) are rounded to."""
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    for name, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        if matrices is not None and value.ndim == 2:
            writer.add_tensor(name, _rounded(value, matrices), raw_dtype=matrices)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rounded(values: Array, kind: Type) -> NDArray[Any]:
    """The values in the type's blocks; for types that ``gguf`` only reads, random blocks of their format."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        return _random_blocks(values.shape, kind)


# Where the half-precision scales of a block stand, in bytes, and a factor that keeps the weights near 0.05.
_SCALES = {
    Type.Q4_K: ((0, 2), (0.0002, 0.0002)),
    Type.Q5_K: ((0, 2), (0.0001, 0.0001)),
    Type.Q6_K: ((208,), (0.00003,)),
    Type.Q3_K: ((108,), (0.0004,)),
}


def _random_blocks(shape: tuple[int, ...], kind: Type) -> NDArray[Any]:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(7)
    blocks = random.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    places, factors = _SCALES[kind]
    for place, factor in zip(places, factors, strict=True):
        blocks[..., place : place + 2] = np.frombuffer(np.float16(factor).tobytes(), dtype=np.uint8)
    return blocks.reshape(shape[0], -1)
