"""A plain single-precision forward pass of a Llama-family model in numpy: the reference.

Computes from the weights as the GGUF file stores them and as llama.cpp defines them, so that a
mistake of the conversion (an order of rows, a fused matrix, a missing bias) shows as a difference.
Guarantees nothing about speed beyond a few dozen tokens, keeps no cache and samples nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from nodes.gguf_shape import ModelShape
from nodes.gguf_tensors import GgufTensors, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer as the file stores it: matrices are outputs by inputs, absent parts are None."""

    attention_norm: Weights
    query: Weights
    key: Weights
    value: Weights
    query_bias: Weights | None
    key_bias: Weights | None
    value_bias: Weights | None
    query_norm: Weights | None
    key_norm: Weights | None
    output: Weights
    feed_forward_norm: Weights
    gate: Weights
    up: Weights
    down: Weights

    @classmethod
    def read(cls, tensors: GgufTensors, *, layer: int, shape: ModelShape) -> Self:
        """Raises ``CorruptModel`` and ``UnsupportedModel``."""
        width, inner, head = shape.width, shape.inner, shape.head
        rows, rows_kv = shape.heads * head, shape.heads_kv * head
        normed = shape.family.query_key_norm

        def read(name: str, *size: int) -> Weights:
            return tensors.read(f"blk.{layer}.{name}", shape=size)

        def bias(name: str, size: int) -> Weights | None:
            return tensors.read_if_present(f"blk.{layer}.{name}.bias", shape=(size,))

        return cls(
            attention_norm=read("attn_norm.weight", width),
            query=read("attn_q.weight", rows, width),
            key=read("attn_k.weight", rows_kv, width),
            value=read("attn_v.weight", rows_kv, width),
            query_bias=bias("attn_q", rows),
            key_bias=bias("attn_k", rows_kv),
            value_bias=bias("attn_v", rows_kv),
            query_norm=read("attn_q_norm.weight", head) if normed else None,
            key_norm=read("attn_k_norm.weight", head) if normed else None,
            output=read("attn_output.weight", width, rows),
            feed_forward_norm=read("ffn_norm.weight", width),
            gate=read("ffn_gate.weight", inner, width),
            up=read("ffn_up.weight", inner, width),
            down=read("ffn_down.weight", width, inner),
        )


@dataclass(slots=True)
class ActivationRanges:
    """Largest absolute value per channel that enters the attention, the gate and the down projection."""

    attention: Weights | float = 0.0
    gate: Weights | float = 0.0
    down: Weights | float = 0.0


class ReferenceDecoder:
    """The hidden states of some texts, carried through the layers together.

    ``scored`` is the text whose predictions are wanted; ``measured`` are further ones that only
    tell which activations occur. All are token ids.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        embeddings: Weights,
        scored: Sequence[int],
        measured: Sequence[Sequence[int]] = (),
    ) -> None:
        self._shape = shape
        texts = [scored, *measured]
        ends = np.cumsum([len(text) for text in texts]).tolist()
        self._texts = [slice(end - len(text), end) for text, end in zip(texts, ends, strict=True)]
        self._hidden: Weights = embeddings[[token for text in texts for token in text]]

    def advance(self, weights: LayerWeights, *, layer: int) -> ActivationRanges:
        """Apply one layer to every text; what went into its matrices on the measured ones."""
        ranges = ActivationRanges()
        entering = _normalised(self._hidden, weights.attention_norm, epsilon=self._shape.epsilon)
        ranges.attention = self._largest(entering)
        self._hidden = self._hidden + self._attended(entering, weights, rotates=self._shape.rotates(layer))
        entering = _normalised(self._hidden, weights.feed_forward_norm, epsilon=self._shape.epsilon)
        ranges.gate = self._largest(entering)
        gate = entering @ weights.gate.T
        with np.errstate(over="ignore"):  # exp of a large negative gate is infinite, and its part zero
            inner = gate / (1 + np.exp(-gate)) * (entering @ weights.up.T)
        ranges.down = self._largest(inner)
        self._hidden = self._hidden + inner @ weights.down.T
        return ranges

    def log_probabilities(self, *, norm: Weights, projection: Weights) -> Weights:
        """Positions by vocabulary of the scored text, after the last layer."""
        hidden = self._hidden[self._texts[0]]
        logits: Weights = _normalised(hidden, norm, epsilon=self._shape.epsilon) @ projection.T
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return logits

    def _largest(self, rows: Weights) -> Weights | float:
        measured = rows[self._texts[0].stop :]
        return np.abs(measured).max(axis=0) if len(measured) else 0.0

    def _attended(self, entering: Weights, weights: LayerWeights, *, rotates: bool) -> Weights:
        query = self._heads(entering, weights.query, weights.query_bias)
        key = self._heads(entering, weights.key, weights.key_bias)
        value = self._heads(entering, weights.value, weights.value_bias)
        if weights.query_norm is not None and weights.key_norm is not None:
            query = _normalised(query, weights.query_norm, epsilon=self._shape.epsilon)
            key = _normalised(key, weights.key_norm, epsilon=self._shape.epsilon)
        mixed = [self._mixed(query[text], key[text], value[text], rotates=rotates) for text in self._texts]
        result: Weights = np.concatenate(mixed) @ weights.output.T
        return result

    def _mixed(self, query: Weights, key: Weights, value: Weights, *, rotates: bool) -> Weights:
        """The attention of one text: positions by all heads side by side."""
        shape, length = self._shape, len(query)
        if rotates:
            query, key = self._rotated(query), self._rotated(key)
        group = shape.heads // shape.heads_kv
        key, value = key.repeat(group, axis=1), value.repeat(group, axis=1)
        scores = query.transpose(1, 0, 2) @ key.transpose(1, 2, 0) / np.float32(np.sqrt(shape.head))
        scores += np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed: Weights = (shares @ value.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(length, -1)
        return mixed

    def _heads(self, entering: Weights, matrix: Weights, bias: Weights | None) -> Weights:
        out = entering @ matrix.T
        return (out if bias is None else out + bias).reshape(len(entering), -1, self._shape.head)

    def _rotated(self, vectors: Weights) -> Weights:
        shape = self._shape
        frequencies = shape.rotary_base ** (-np.arange(0, shape.head, 2, dtype=np.float64) / shape.head)
        if shape.rotary_divisors is not None:
            frequencies = frequencies / shape.rotary_divisors
        angles = np.outer(np.arange(len(vectors)), frequencies)[:, None, :]
        cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        half = shape.head // 2
        pairs = (slice(0, None, 2), slice(1, None, 2)) if shape.family.interleaved else (slice(half), slice(half, None))
        first, second = vectors[..., pairs[0]], vectors[..., pairs[1]]
        turned = np.empty_like(vectors)
        turned[..., pairs[0]] = first * cosine - second * sine
        turned[..., pairs[1]] = second * cosine + first * sine
        return turned


def _normalised(hidden: Weights, gamma: Weights, *, epsilon: float) -> Weights:
    result: Weights = hidden / np.sqrt((hidden * hidden).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * gamma
    return result
