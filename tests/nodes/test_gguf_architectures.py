"""Every supported architecture, rotary scaling and quantisation is converted to the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import gguf
import numpy as np
import pytest

from nodes import gguf_conversion
from nodes.conversion_check import CheckFailed, ReferenceScores, check_against_reference
from nodes.gguf_conversion import convert_gguf
from nodes.gguf_shape import llama3_divisors, read_shape
from nodes.gguf_tensors import GgufTensors, open_gguf
from nodes.model_manifest import read_vocabulary
from nodes.reference_decoder import LayerWeights, ReferenceDecoder
from tests.nodes.small_gguf import (
    BASE,
    HEAD,
    KINDS,
    Array,
    Edit,
    Type,
    metadata_of_a_small_model,
    tensors_of_a_small_model,
    write_file,
    write_gguf,
)

LENGTH = 200  # rotary scaling shows at the far positions


def read(path: Path) -> tuple[Any, GgufTensors]:
    reader = open_gguf(path)
    tensors = GgufTensors(reader)
    return read_shape({name: field.contents() for name, field in reader.fields.items()}, tensors=tensors), tensors


def reference(path: Path, ids: list[int]) -> Array:
    """The log probabilities of the file's own weights."""
    shape, tensors = read(path)
    embeddings = tensors.read("token_embd.weight", shape=(shape.vocabulary, shape.width))
    decoder = ReferenceDecoder(shape, embeddings=embeddings, scored=ids)
    for layer in range(shape.layers):
        decoder.advance(LayerWeights.read(tensors, layer=layer, shape=shape), layer=layer)
    untied = tensors.read_if_present("output.weight", shape=embeddings.shape)
    norm = tensors.read("output_norm.weight", shape=(shape.width,))
    return decoder.log_probabilities(norm=norm, projection=embeddings if untied is None else untied)


def converted(directory: Path, ids: list[int]) -> Array:
    vocabulary = read_vocabulary(directory)
    generator = ctranslate2.Generator(str(directory), compute_type="float32")
    tokens = [[vocabulary[number] for number in ids]]
    found = np.array(generator.forward_batch(tokens, return_log_probs=True))[0]
    del generator
    return found


def some_ids(vocabulary: int) -> list[int]:
    return np.random.default_rng(11).integers(3, vocabulary, LENGTH).tolist()


def assert_the_same_function(tmp_path: Path, *, kind: str = "llama", edit: Edit | None = None) -> None:
    path, target = tmp_path / "model.gguf", tmp_path / "converted"
    write_gguf(path, edit, kind=kind)
    target.mkdir()
    convert_gguf(path, target, quantization="float32")
    ids = some_ids(len(read_vocabulary(target)))
    expected, found = reference(path, ids), converted(target, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture_agrees_with_its_reference(tmp_path: Path, kind: str) -> None:
    assert_the_same_function(tmp_path, kind=kind)


def linear(metadata: dict[str, Any], tensors: dict[str, Array]) -> None:
    metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}


def llama3(metadata: dict[str, Any], tensors: dict[str, Array]) -> None:
    metadata |= {
        "llama.rope.scaling.type": "llama3",
        "llama.rope.scaling.factor": 8.0,
        "llama.rope.scaling.original_context_length": 32,
    }


def stored_divisors(metadata: dict[str, Any], tensors: dict[str, Array]) -> None:
    tensors["rope_freqs.weight"] = np.array([1, 1.5, 6, 8], dtype=np.float32)


def llama_biases(metadata: dict[str, Any], tensors: dict[str, Array]) -> None:
    tensors |= tensors_of_a_small_model(9, biases=True)


@pytest.mark.parametrize("edit", [linear, llama3, stored_divisors, llama_biases])
def test_each_variant_of_llama_agrees_with_its_reference(tmp_path: Path, edit: Edit) -> None:
    assert_the_same_function(tmp_path, edit=edit)


@pytest.mark.parametrize("edit", [linear, llama3, stored_divisors])
def test_rotary_scaling_is_not_lost(tmp_path: Path, edit: Edit) -> None:
    scaled, plain = tmp_path / "scaled.gguf", tmp_path / "plain.gguf"
    write_gguf(scaled, edit)
    write_gguf(plain)
    ids = some_ids(200)
    assert np.abs(reference(scaled, ids) - reference(plain, ids)).max() > 0.1


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    divisors = llama3_divisors(head=128, base=500_000.0, factor=8.0, low=1.0, high=4.0, original=8192)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert (np.diff(divisors) >= 0).all()
    assert ((divisors > 1) & (divisors < 8)).sum() >= 3


@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope"])
def test_other_rotary_scaling_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, lambda metadata, tensors: metadata.update({"llama.rope.scaling.type": name}))
    with pytest.raises(gguf_conversion.UnsupportedModel, match=f"'{name}' is not supported"):
        read(path)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, lambda metadata, tensors: metadata.update({"llama.attention.sliding_window": 48}))
    assert read(path)[0].context_length == 48


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_pass_the_check(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "model.gguf", kind=kind)
    (tmp_path / "converted").mkdir()
    check = convert_gguf(tmp_path / "model.gguf", tmp_path / "converted").check
    assert check is not None
    assert check.tokens == 63
    assert check.agreement is not None
    assert check.agreement > 0.8
    assert check.perplexity_ratio == pytest.approx(1.0, abs=0.1)


TYPES = (
    *(Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0),
    *(Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K),
)


@pytest.mark.parametrize("matrices", TYPES, ids=lambda kind: kind.name)
def test_each_quantisation_is_read(tmp_path: Path, matrices: gguf.GGMLQuantizationType) -> None:
    """The blocks of K-quants are 256 values wide, so this model is, too."""
    sizes: dict[str, Any] = {"width": 256, "inner": 256}
    metadata = metadata_of_a_small_model(**sizes) | {"llama.attention.key_length": 64}
    path, target = tmp_path / "model.gguf", tmp_path / "converted"
    write_file(path, metadata, tensors_of_a_small_model(head=64, **sizes), matrices=matrices)
    target.mkdir()
    check = convert_gguf(path, target, quantization="float32").check
    assert check is not None
    assert (check.agreement, check.perplexity_ratio) == (1.0, 1.0)
    stored = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert stored["blk.0.ffn_up.weight"] == matrices


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_matrix_is_the_same_whatever_the_size_of_the_blocks_it_is_read_in(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tensors_of_a_small_model(inner=64)
    write_file(tmp_path / "model.gguf", metadata_of_a_small_model(inner=64), dict(tensors), matrices=Type.Q8_0)
    whole = GgufTensors(open_gguf(tmp_path / "model.gguf")).read("blk.0.ffn_up.weight", shape=(64, 32))
    monkeypatch.setattr("nodes.gguf_tensors._BLOCK_VALUES", rows * 32)
    parts = GgufTensors(open_gguf(tmp_path / "model.gguf")).read("blk.0.ffn_up.weight", shape=(64, 32))
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_allclose(whole, tensors["blk.0.ffn_up.weight"], atol=0.01)


@pytest.mark.parametrize("quantization", ["int8", "float32"])
def test_a_wrong_conversion_is_refused(tmp_path: Path, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query and key rows are left in the file's order: the mistake that is easiest to make."""
    monkeypatch.setattr(gguf_conversion, "_halves", lambda rows, *, heads: rows)
    write_gguf(tmp_path / "model.gguf", lambda metadata, tensors: tensors.update(strong_attention(tensors)))
    (tmp_path / "converted").mkdir()
    with pytest.raises(CheckFailed, match=r"disagrees with its reference: the same token at \d+% of 63 positions"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "converted", quantization=quantization)


def strong_attention(tensors: dict[str, Array]) -> dict[str, Array]:
    """Random weights hardly look at other tokens; these do."""
    louder = ("attn_q", "attn_k", "attn_output", "attn_v")
    return {name: value * 5 for name, value in tensors.items() if any(part in name for part in louder)}


def test_damaged_weights_fail_the_check_later(tmp_path: Path) -> None:
    target = tmp_path / "converted"
    write_gguf(tmp_path / "model.gguf")
    target.mkdir()
    convert_gguf(tmp_path / "model.gguf", target)
    kept = ReferenceScores.read(target)
    assert kept is not None
    assert check_against_reference(target, reference=kept, quantization="int8").tokens == 63
    weights = bytearray((target / "model.bin").read_bytes())
    middle = len(weights) // 2
    weights[middle : middle + 4000] = bytes(value ^ 0x55 for value in weights[middle : middle + 4000])
    (target / "model.bin").write_bytes(weights)
    with pytest.raises(CheckFailed):
        check_against_reference(target, reference=kept, quantization="int8")


def test_head_size_may_differ_from_width_over_heads(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", kind="qwen3")
    shape, _ = read(tmp_path / "model.gguf")
    assert (shape.head, shape.width // shape.heads, shape.rotary_base) == (16, HEAD, BASE)
