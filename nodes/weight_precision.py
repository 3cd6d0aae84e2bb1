"""Rounding of one layer's weights to the type in which they are stored.

Guarantees CTranslate2's own formats: 8-bit matrices have one scale per row, everything else the
plain type. Works on a single layer, so that a model need never be in memory in single precision
as a whole; CTranslate2's ``optimize`` wants the whole model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ctranslate2.specs import model_spec

from nodes.gguf_tensors import Weights


def store_as(layer: Any, quantization: str) -> None:
    """Round every weight of a CTranslate2 ``LayerSpec`` in place. ``quantization``: see ``QUANTIZATIONS``."""
    parts: list[tuple[Any, str, Any]] = []
    model_spec.visit_spec(layer, lambda part, name, value: parts.append((part, name.rsplit("/", 1)[-1], value)))
    for part, name, value in parts:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or name.startswith("rotary_"):
            continue
        if quantization == "int8" and hasattr(part, f"{name}_scale"):
            rounded, scales = _eight_bits(value)
            setattr(part, name, rounded)
            setattr(part, f"{name}_scale", scales)
        elif quantization == "float16":
            setattr(part, name, value.astype(np.float16))


def _eight_bits(weights: Weights) -> tuple[Any, Weights]:
    """The matrix as multiples of a step per row, and 1 / step. Overwrites ``weights``."""
    largest = np.maximum(weights.max(axis=1), -weights.min(axis=1))
    largest[largest == 0] = 127.0
    # A row of tiny weights must not make a scale that single precision cannot hold.
    largest = np.maximum(largest, np.float32(127) / np.finfo(np.float32).max)
    scales = (127.0 / largest).astype(np.float32)
    weights *= scales[:, None]
    np.rint(weights, out=weights)
    return weights.astype(np.int8), scales
