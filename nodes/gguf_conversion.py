"""Conversion of a Llama-family GGUF file into a checked CTranslate2 model directory.

Guarantees: every tensor and every token of the file is either converted or the file is refused, so
a half-understood model is never written; the result agrees with a reference computed from the same
weights; needs numpy and the CTranslate2 specification only, no deep-learning framework; beyond the
finished model, one layer or one embedding matrix in single precision is in memory. Does not
download, register or store models (``model_store`` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import attention_spec, common_spec, transformer_spec
from tokenizers import Tokenizer

from nodes.activation_smoothing import CALIBRATION_TEXTS, smooth
from nodes.conversion_check import CHECK_TEXT, ReferenceScores, check_against_reference, check_tokens
from nodes.converted_model import QUANTIZATIONS, ConvertedModel, Progress, UnsupportedModel
from nodes.gguf_shape import ModelShape, read_shape
from nodes.gguf_tensors import GgufTensors, Weights, open_gguf
from nodes.gguf_tokenizer import GgufTokenizer, UnsupportedTokenizer
from nodes.model_manifest import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, CorruptModel
from nodes.reference_decoder import LayerWeights, ReferenceDecoder
from nodes.weight_precision import store_as

_EMBEDDINGS, _FINAL_NORM, _PROJECTION = "token_embd.weight", "output_norm.weight", "output.weight"
_PROGRESS_LINES = 4


def convert_gguf(
    gguf_path: Path,
    target: Path,
    *,
    quantization: str = "int8",
    chat_template: str | None = None,
    progress: Progress = lambda line: None,
) -> ConvertedModel:
    """Write the model of ``gguf_path`` into the existing empty directory ``target`` and check it.

    ``quantization`` is one of ``QUANTIZATIONS``; ``chat_template`` replaces the file's own. Raises
    ``UnsupportedModel``, ``CorruptModel``, ``CheckFailed`` and, from the file system, ``OSError``.
    """
    if quantization not in QUANTIZATIONS:
        raise UnsupportedModel(f"{quantization!r} is no weight type. Use {', '.join(QUANTIZATIONS)}.")
    reader = open_gguf(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = GgufTensors(reader)
    shape = read_shape(metadata, tensors=tensors)
    try:
        description = GgufTokenizer.from_metadata(metadata, chat_template=chat_template)
        tokenizer = description.tokenizer()
    except UnsupportedTokenizer as error:
        raise UnsupportedModel(str(error)) from error
    if len(description.tokens) != shape.vocabulary:
        raise CorruptModel(
            f"The GGUF file has {len(description.tokens)} tokens for {shape.vocabulary} embeddings. Download it again."
        )
    progress(f"Converting {shape.layers} layers ({shape.architecture}) of {gguf_path.name} to {quantization}")
    conversion = _Conversion(shape, tensors=tensors, description=description, tokenizer=tokenizer)
    reference = conversion.run(quantization, progress=progress)
    progress("Writing the converted weights")
    conversion.specification.save(str(target))
    tokenizer.save(str(target / TOKENIZER_FILE))
    (target / CHAT_TEMPLATE_FILE).write_text(description.chat_template, encoding="utf-8")
    reference.write(target)
    progress(f"Checking {len(reference.next_scores)} positions against the original weights")
    return ConvertedModel(
        architecture=shape.architecture,
        context_length=shape.context_length,
        vocabulary_size=len(description.tokens),
        bos_token_id=description.bos_token_id,
        eos_token_id=description.eos_token_id,
        end_token_ids=description.end_token_ids,
        quantization=quantization,
        check=check_against_reference(target, reference=reference, quantization=quantization),
    )


class _Conversion:
    """The work in progress: the specification being filled, and two passes over the original weights."""

    def __init__(
        self, shape: ModelShape, *, tensors: GgufTensors, description: GgufTokenizer, tokenizer: Tokenizer
    ) -> None:
        self.specification = _empty_specification(shape)
        self._shape = shape
        self._tensors = tensors
        self._description = description
        self._check_ids = check_tokens(
            tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids,
            bos_token_id=description.bos_token_id,
            context_length=shape.context_length,
        )
        prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in CALIBRATION_TEXTS]
        self._prompts = [ids[: shape.context_length] for ids in prompts if ids]

    def run(self, quantization: str, *, progress: Progress) -> ReferenceScores:
        """Fill the specification layer by layer; what the original weights predict on the check's text."""
        shape, decoder = self._shape, self.specification.decoder
        embeddings = self._embeddings()
        tied = _PROJECTION not in self._tensors
        prompts = self._prompts if quantization == "int8" else ()
        decoded = ReferenceDecoder(shape, embeddings=embeddings, scored=self._check_ids, measured=prompts)
        decoder.embeddings.weight = embeddings
        store_as(decoder.embeddings, quantization)
        del embeddings
        for number, layer in enumerate(decoder.layer):
            weights = LayerWeights.read(self._tensors, layer=number, shape=shape)
            ranges = decoded.advance(weights, layer=number)
            _fill_layer(layer, weights=weights, shape=shape)
            if prompts:
                smooth(layer, ranges)
            store_as(layer, quantization)
            if (number + 1) % max(1, shape.layers // _PROGRESS_LINES) == 0:
                progress(f"Converted {number + 1} of {shape.layers} layers")
        norm = self._tensors.read(_FINAL_NORM, shape=(shape.width,))
        projection = self._embeddings() if tied else self._matrix(_PROJECTION)
        self._tensors.require_none_left()
        found = decoded.log_probabilities(norm=norm, projection=projection)
        reference = ReferenceScores.of(found, token_ids=self._check_ids, source="a float32 numpy pass")
        decoder.layer_norm.gamma = norm
        store_as(decoder.layer_norm, quantization)
        self._project(projection, tied=tied, quantization=quantization)
        self._finish()
        return reference

    def _embeddings(self) -> Weights:
        return self._matrix(_EMBEDDINGS)

    def _matrix(self, name: str) -> Weights:
        return self._tensors.read(name, shape=(self._shape.vocabulary, self._shape.width))

    def _project(self, projection: Weights, *, tied: bool, quantization: str) -> None:
        part = self.specification.decoder.projection
        if tied:
            # An alias: CTranslate2 lets it share the matrix and its scales.
            part.weight = "decoder/embeddings/weight"
            return
        part.weight = projection
        store_as(part, quantization)

    def _finish(self) -> None:
        description, specification = self._description, self.specification
        tokens = description.tokens
        specification.register_vocabulary(list(tokens))
        config = specification.config
        config.bos_token = tokens[description.bos_token_id or 0]
        config.eos_token = tokens[description.eos_token_id]
        config.unk_token = tokens[description.unknown_token_id]
        config.layer_norm_epsilon = self._shape.epsilon
        alias = specification.decoder.projection.weight
        try:
            specification.validate()
        except ValueError as error:
            raise CorruptModel(f"The GGUF file contradicts itself ({error}). Download it again.") from error
        if isinstance(alias, str):
            specification.decoder.projection.weight = alias  # validation takes text for an attribute


def _empty_specification(shape: ModelShape) -> transformer_spec.TransformerDecoderModelSpec:
    specification = transformer_spec.TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        # Of CTranslate2's rotary scalings only this one takes a divisor per pair, as GGUF files give
        # them. Its Llama 3 variant is written without the factor and so scales nothing.
        rotary_scaling_type=None if shape.rotary_divisors is None else attention_spec.RotaryScalingType.Su,
        rotary_base=shape.rotary_base,
        num_heads_kv=None if shape.heads_kv == shape.heads else shape.heads_kv,
        head_dim=None if shape.head * shape.heads == shape.width else shape.head,
        qk_norm=shape.family.query_key_norm,
    )
    specification.decoder.scale_embeddings = False
    for number, layer in enumerate(specification.decoder.layer):
        attention = layer.self_attention
        if not shape.rotates(number):
            for name in [name for name in vars(attention) if name.startswith("rotary_")]:
                delattr(attention, name)
        elif shape.rotary_divisors is not None:
            attention.rotary_scaling_long_factor = shape.rotary_divisors
            attention.rotary_scaling_short_factor = shape.rotary_divisors
    return specification


def _fill_layer(layer: Any, *, weights: LayerWeights, shape: ModelShape) -> None:
    attention, feed_forward = layer.self_attention, layer.ffn
    query, key = weights.query, weights.key
    biases: Mapping[str, Weights | None] = {
        "query": weights.query_bias,
        "key": weights.key_bias,
        "value": weights.value_bias,
    }
    if shape.family.interleaved:
        query, key = _halves(query, heads=shape.heads), _halves(key, heads=shape.heads_kv)
        biases = {
            "query": _halves_or_none(weights.query_bias, heads=shape.heads),
            "key": _halves_or_none(weights.key_bias, heads=shape.heads_kv),
            "value": weights.value_bias,
        }
    attention.layer_norm.gamma = weights.attention_norm
    attention.linear[0].weight = np.concatenate([query, key, weights.value])
    if any(bias is not None for bias in biases.values()):
        sizes = {"query": len(query), "key": len(key), "value": len(weights.value)}
        attention.linear[0].bias = np.concatenate(
            [np.zeros(sizes[name], np.float32) if bias is None else bias for name, bias in biases.items()]
        )
    if shape.family.query_key_norm:
        attention.q_norm.gamma, attention.k_norm.gamma = weights.query_norm, weights.key_norm
    attention.linear[1].weight = weights.output
    feed_forward.layer_norm.gamma = weights.feed_forward_norm
    feed_forward.linear_0.weight = weights.gate
    feed_forward.linear_0_noact.weight = weights.up
    feed_forward.linear_1.weight = weights.down


def _halves(rows: Weights, *, heads: int) -> Weights:
    """Undo the row order of llama.cpp (rotary pairs interleaved): back to halves per head."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _halves_or_none(bias: Weights | None, *, heads: int) -> Weights | None:
    return None if bias is None else _halves(bias, heads=heads)
