"""The hyper-parameters of a model of the Llama family, from a GGUF file's metadata.

Guarantees: a shape that was read is one that ``gguf_conversion`` writes and ``reference_decoder``
computes exactly; whatever would change the function and is not covered (experts, YaRN, scaled
attention, …) is refused by name. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nodes.converted_model import UnsupportedModel
from nodes.gguf_tensors import GgufTensors, Weights
from nodes.model_manifest import CorruptModel

_ROPE_TENSOR = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture's name implies.

    ``interleaved``: llama.cpp stores the query and key rows with neighbouring rotary pairs instead
    of halves. ``every_rotary`` n: each n-th layer has no rotary embedding (0: all have).
    """

    interleaved: bool
    query_key_norm: bool = False
    every_rotary: int = 0


FAMILIES: Mapping[str, Family] = {
    "llama": Family(interleaved=True),
    "qwen2": Family(interleaved=False),
    "qwen3": Family(interleaved=False, query_key_norm=True),
    "smollm3": Family(interleaved=True, every_rotary=4),
}

# Metadata that make a model compute something else than the plain architecture does.
_FOREIGN = (
    "attention.scale",
    "attention.clamp_kqv",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes are numbers of values; ``context_length`` is in token ids.

    ``rotary_divisors`` divide the rotary frequencies, one per pair; None leaves them as they are.
    """

    architecture: str
    family: Family
    layers: int
    width: int
    inner: int
    heads: int
    heads_kv: int
    head: int
    vocabulary: int
    context_length: int
    rotary_base: float
    rotary_divisors: Weights | None
    epsilon: float

    def rotates(self, layer: int) -> bool:
        """Whether the layer (from 0) has rotary embeddings."""
        every = self.family.every_rotary
        return not every or (layer + 1) % every != 0


def read_shape(metadata: Mapping[str, Any], *, tensors: GgufTensors) -> ModelShape:
    """Raises ``UnsupportedModel`` and ``CorruptModel``."""
    architecture = metadata.get("general.architecture")
    family = FAMILIES.get(str(architecture))
    if family is None:
        raise UnsupportedModel(
            f"The architecture {architecture!r} is not supported ({', '.join(FAMILIES)} are)."
            " Choose a Llama-family GGUF, or add a CTranslate2 or Hugging Face directory."
        )
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in metadata.items()
        if name.startswith(f"{architecture}.")
    }
    _refuse_foreign(own)
    try:
        return _shape(str(architecture), family, own, tensors=tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"The GGUF file lacks a usable {error}. Download it again.") from error


def _refuse_foreign(own: Mapping[str, Any]) -> None:
    if int(own.get("expert_count", 0)) > 0:
        raise UnsupportedModel("Mixtures of experts are not supported. Choose a dense model.")
    for name in _FOREIGN:
        if own.get(name):
            raise UnsupportedModel(f"The model's {name} ({own[name]}) is not supported. Choose a plain model.")
    for name, value in own.items():
        if isinstance(value, list) and name in ("attention.head_count", "attention.head_count_kv"):
            raise UnsupportedModel(f"The model's {name} differs between layers, which is not supported.")


def _shape(architecture: str, family: Family, own: Mapping[str, Any], *, tensors: GgufTensors) -> ModelShape:
    heads, width = int(own["attention.head_count"]), int(own["embedding_length"])
    head = int(own.get("attention.key_length", width // heads))
    heads_kv = int(own.get("attention.head_count_kv", heads))
    if min(heads, heads_kv, head, width) <= 0 or heads % heads_kv or head % 2:
        raise CorruptModel(
            f"The GGUF file's heads make no sense ({heads} of {head} values, {heads_kv} for keys). Download it again."
        )
    for name in ("attention.value_length", "rope.dimension_count"):
        if int(own.get(name, head)) != head:
            raise UnsupportedModel(f"The model's {name} is {own[name]}; only that of the heads ({head}) is supported.")
    base = float(own.get("rope.freq_base", 10000.0))
    return ModelShape(
        architecture=architecture,
        family=family,
        layers=int(own["block_count"]),
        width=width,
        inner=int(own["feed_forward_length"]),
        heads=heads,
        heads_kv=heads_kv,
        head=head,
        vocabulary=tensors.vocabulary_rows("token_embd.weight"),
        context_length=_context_length(own),
        rotary_base=base,
        rotary_divisors=_rotary_divisors(own, head=head, base=base, tensors=tensors),
        epsilon=float(own["attention.layer_norm_rms_epsilon"]),
    )


def _context_length(own: Mapping[str, Any]) -> int:
    """Up to its sliding window a model attends to everything, so the window is where exactness ends."""
    context = int(own["context_length"])
    window = int(own.get("attention.sliding_window", 0))
    return min(context, window) if window > 0 else context


def _rotary_divisors(own: Mapping[str, Any], *, head: int, base: float, tensors: GgufTensors) -> Weights | None:
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0)) or 1.0)
    kind = str(own.get("rope.scaling.type", "linear"))
    stored = tensors.read_if_present(_ROPE_TENSOR, shape=(head // 2,))
    if stored is not None:
        if kind == "linear" and factor != 1.0:
            raise UnsupportedModel(f"The model has both {_ROPE_TENSOR} and linear rotary scaling. Choose another file.")
        if not (stored > 0).all():
            raise CorruptModel(f"Tensor {_ROPE_TENSOR} has values that are not positive. Download it again.")
        return stored
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return np.full(head // 2, factor, dtype=np.float32)
    if kind == "llama3":
        return llama3_divisors(
            head=head,
            base=base,
            factor=factor,
            low=float(own.get("rope.scaling.low_freq_factor", 1.0)),
            high=float(own.get("rope.scaling.high_freq_factor", 4.0)),
            original=int(own["rope.scaling.original_context_length"]),
        )
    raise UnsupportedModel(
        f"Rotary scaling {kind!r} is not supported (none, linear and llama3 are). Choose a model without it."
    )


def llama3_divisors(*, head: int, base: float, factor: float, low: float, high: float, original: int) -> Weights:
    """The rule of Llama 3.1: long waves are stretched by ``factor``, short ones kept, the rest in between."""
    waves = 2 * np.pi * base ** (np.arange(0, head, 2, dtype=np.float64) / head)
    between = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - between) / factor + between)).astype(np.float32)
