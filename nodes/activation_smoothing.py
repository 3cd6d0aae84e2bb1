"""Scaling of a Llama model's weights so that 8-bit arithmetic loses less.

CTranslate2 rounds activations to 8 bits with one scale per token; a few channels with large values
then drown the others (on the built-in model this changed one greedy token in six). Dividing such
channels and multiplying the next layer's weights by the same factors moves the range into the
weights, which have a scale per row: SmoothQuant, Xiao et al. 2023, with the factors measured on a
few sentences. Guarantees: the model computes the same function before rounding. Does not quantise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

CALIBRATION_TEXTS = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhy does the moon change its shape during the month?<|im_end|>\n"
    "<|im_start|>assistant\nThe moon does not change its shape. What changes is how much of its lit half"
    " we can see from the Earth, because it moves around us once every 29.5 days.<|im_end|>\n",
    "<|im_start|>user\nWrite a Python function that adds 2 numbers.<|im_end|>\n"
    "<|im_start|>assistant\nHere it is:\n```python\ndef add(a, b):\n    return a + b\n```\n"
    "It returns the sum, for example `add(2, 3)` gives 5.<|im_end|>\n",
    "In 1969, two people walked on the Moon for the first time; the crew came home after 8 days."
    " « Un petit pas pour l'homme » — said many newspapers.",
)
# Half of the range goes into the weights (SmoothQuant's alpha); 0.65 and 0.8 measured worse.
_SHARE = 0.5
_SMALLEST, _LARGEST = 1e-3, 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What the forward pass needs besides the weights. Rotary pairs are halves of a head."""

    heads: int
    heads_kv: int
    rotary_base: float
    epsilon: float


@dataclass(slots=True)
class _Ranges:
    """Largest absolute value per channel at the three places that can be scaled exactly."""

    attention: Any = 0.0
    gate: Any = 0.0
    down: Any = 0.0


def smooth(decoder: Any, *, shape: AttentionShape, prompts: Sequence[Sequence[int]]) -> None:
    """Scale the layers of a ``TransformerDecoderSpec`` in place; ``prompts`` are token ids."""
    ranges = [_Ranges() for _ in decoder.layer]
    for prompt in prompts:
        if prompt:
            _measure(decoder, shape=shape, prompt=prompt, ranges=ranges)
    for layer, measured in zip(decoder.layer, ranges, strict=True):
        _scale(layer, measured)


def _scale(layer: Any, measured: _Ranges) -> None:
    attention, feed_forward = layer.self_attention, layer.ffn
    fused, down = attention.linear[0], feed_forward.linear_1
    gate, up = feed_forward.linear_0, feed_forward.linear_0_noact
    factors = _factors(measured.attention, weights=[fused.weight])
    attention.layer_norm.gamma = attention.layer_norm.gamma / factors
    fused.weight = fused.weight * factors
    factors = _factors(measured.gate, weights=[gate.weight, up.weight])
    feed_forward.layer_norm.gamma = feed_forward.layer_norm.gamma / factors
    gate.weight, up.weight = gate.weight * factors, up.weight * factors
    factors = _factors(measured.down, weights=[down.weight])
    up.weight, down.weight = up.weight / factors[:, None], down.weight * factors


def _factors(activations: Any, *, weights: Sequence[Weights]) -> Weights:
    """One positive factor per channel, with a geometric mean of about one."""
    largest = np.max([np.abs(matrix).max(axis=0) for matrix in weights], axis=0)
    raw = np.maximum(activations, 1e-5) ** _SHARE / np.maximum(largest, 1e-5) ** (1 - _SHARE)
    factors: Weights = np.clip(raw / np.exp(np.log(raw).mean()), _SMALLEST, _LARGEST).astype(np.float32)
    return factors


def _measure(decoder: Any, *, shape: AttentionShape, prompt: Sequence[int], ranges: Sequence[_Ranges]) -> None:
    """One forward pass over ``prompt`` in single precision."""
    hidden = decoder.embeddings.weight[list(prompt)]
    for layer, measured in zip(decoder.layer, ranges, strict=True):
        entering = _normalised(hidden, layer.self_attention.layer_norm.gamma, epsilon=shape.epsilon)
        measured.attention = np.maximum(measured.attention, np.abs(entering).max(axis=0))
        hidden = hidden + _attended(entering, layer.self_attention, shape=shape)
        entering = _normalised(hidden, layer.ffn.layer_norm.gamma, epsilon=shape.epsilon)
        measured.gate = np.maximum(measured.gate, np.abs(entering).max(axis=0))
        gate = entering @ layer.ffn.linear_0.weight.T
        inner = gate / (1 + np.exp(-gate)) * (entering @ layer.ffn.linear_0_noact.weight.T)
        measured.down = np.maximum(measured.down, np.abs(inner).max(axis=0))
        hidden = hidden + inner @ layer.ffn.linear_1.weight.T


def _attended(entering: Weights, attention: Any, *, shape: AttentionShape) -> Weights:
    heads, heads_kv, length = shape.heads, shape.heads_kv, len(entering)
    query, key, value = _split(entering @ attention.linear[0].weight.T, shape=shape)
    query, key = _rotated(query, base=shape.rotary_base), _rotated(key, base=shape.rotary_base)
    group = heads // heads_kv
    key, value = key.repeat(group, axis=1), value.repeat(group, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / float(np.sqrt(query.shape[-1]))
    scores += np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, value).reshape(length, -1)
    result: Weights = mixed @ attention.linear[1].weight.T
    return result


def _split(fused: Weights, *, shape: AttentionShape) -> Iterator[Weights]:
    size = fused.shape[1] // (shape.heads + 2 * shape.heads_kv)
    bounds = [shape.heads * size, (shape.heads + shape.heads_kv) * size]
    return (part.reshape(len(fused), -1, size) for part in np.split(fused, bounds, axis=1))


def _normalised(hidden: Weights, gamma: Weights, *, epsilon: float) -> Weights:
    result: Weights = hidden / np.sqrt((hidden * hidden).mean(axis=-1, keepdims=True) + epsilon) * gamma
    return result


def _rotated(vectors: Weights, *, base: float) -> Weights:
    length, _, size = vectors.shape
    angles = np.outer(np.arange(length), base ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    cosine, sine = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first, second = vectors[..., : size // 2], vectors[..., size // 2 :]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
