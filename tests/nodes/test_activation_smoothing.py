"""Smoothing changes how a model rounds, not what it computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from tokenizers import Tokenizer

from nodes import gguf_conversion
from nodes.model_manifest import TOKENIZER_FILE, read_vocabulary
from tests.nodes.small_gguf import tensors_of_a_small_model, write_gguf
from tests.nodes.test_gguf_conversion import converted_logits, reference_logits

IDS = [1, 40, 261, 7, 100, 2, 1, 55, 260, 9]


def convert(directory: Path, *, quantization: str) -> Path:
    directory.mkdir()
    write_gguf(directory / "model.gguf")
    target = directory / "converted"
    target.mkdir()
    gguf_conversion.convert_gguf(directory / "model.gguf", target, quantization=quantization)
    return target


def test_a_smoothed_model_computes_the_same_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written without rounding: the only difference to the reference would be the scaling's."""
    monkeypatch.setattr(gguf_conversion, "store_as", lambda layer, quantization: None)
    target = convert(tmp_path / "smoothed", quantization="int8")
    expected = reference_logits(tensors_of_a_small_model(), IDS)
    np.testing.assert_allclose(converted_logits(target, IDS), expected, rtol=1e-3, atol=1e-4)


def test_smoothing_really_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = convert(tmp_path / "smoothed", quantization="int8")
    monkeypatch.setattr(gguf_conversion, "smooth", lambda *arguments, **options: None)
    plain = convert(tmp_path / "plain", quantization="int8")
    assert (smoothed / "model.bin").read_bytes() != (plain / "model.bin").read_bytes()


def test_the_default_models_eight_bit_arithmetic_agrees_with_single_precision(
    default_model_path: Path, tmp_path: Path
) -> None:
    """Measured 0.034 with smoothing and 0.092 without: the divergence of the next-token distribution."""
    path = shutil.copytree(default_model_path, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(path / TOKENIZER_FILE))
    vocabulary = read_vocabulary(path)
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHow do bees make honey?<|im_end|>\n<|im_start|>assistant\nBees collect nectar from"
        " flowers, store it in the honeycomb and fan it with their wings until the water has gone.<|im_end|>\n"
    )
    tokens = [vocabulary[token] for token in tokenizer.encode(text).ids]
    logs = {}
    for kind in ("float32", "int8"):
        generator = ctranslate2.Generator(str(path), compute_type=kind)
        logs[kind] = np.array(generator.forward_batch([tokens], return_log_probs=True))[0]
        del generator
    divergence = (np.exp(logs["float32"]) * (logs["float32"] - logs["int8"])).sum(axis=-1).mean()
    assert divergence < 0.07
