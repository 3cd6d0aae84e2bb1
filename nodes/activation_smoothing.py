"""Scaling of a Llama model's weights so that 8-bit arithmetic loses less.

CTranslate2 rounds activations to 8 bits with one scale per token; a few channels with large values
then drown the others (on the built-in model this changed one greedy token in six). Dividing such
channels and multiplying the next layer's weights by the same factors moves the range into the
weights, which have a scale per row: SmoothQuant, Xiao et al. 2023, with the factors measured on a
few sentences. Guarantees: the model computes the same function before rounding. Neither measures
(``reference_decoder`` does) nor quantises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nodes.gguf_tensors import Weights
from nodes.reference_decoder import ActivationRanges

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


def smooth(layer: Any, measured: ActivationRanges) -> None:
    """Scale one layer of a ``TransformerDecoderSpec`` in place, with the ranges that enter its matrices."""
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
