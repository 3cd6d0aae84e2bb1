"""Conversion of a Llama-architecture GGUF file into a CTranslate2 model directory.

Guarantees: every tensor and every token of the file is either converted or the file is refused, so
a half-understood model is never written; needs numpy and the CTranslate2 specification only, no
deep-learning framework. Does not download, verify or register models (``model_store`` does), and
does not convert mixtures of experts, SentencePiece vocabularies or scaled rotary embeddings.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gguf
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray

from nodes.activation_smoothing import CALIBRATION_TEXTS, AttentionShape, smooth
from nodes.gguf_tokenizer import GgufTokenizer, UnsupportedTokenizer
from nodes.model_manifest import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, CorruptModel, ModelError

Weights = NDArray[np.float32]
Progress = Callable[[str], None]

ARCHITECTURE = "llama"


class UnsupportedModel(ModelError):
    """The file is sound but holds something that this software cannot run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """What the manifest needs to know about a conversion. ``context_length`` is in token ids."""

    architecture: str
    context_length: int
    vocabulary_size: int
    bos_token_id: int | None
    eos_token_id: int
    end_token_ids: tuple[int, ...]
    quantization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The hyper-parameters of a Llama model, from the file's metadata."""

    layers: int
    heads: int
    heads_kv: int
    context_length: int
    rotary_base: float
    epsilon: float

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> Self:
        """Raises ``UnsupportedModel`` and ``CorruptModel``."""
        _refuse_unsupported(metadata)
        try:
            heads = int(metadata["llama.attention.head_count"])
            return cls(
                layers=int(metadata["llama.block_count"]),
                heads=heads,
                heads_kv=int(metadata.get("llama.attention.head_count_kv", heads)),
                context_length=int(metadata["llama.context_length"]),
                rotary_base=float(metadata.get("llama.rope.freq_base", 10000.0)),
                epsilon=float(metadata["llama.attention.layer_norm_rms_epsilon"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptModel(f"The GGUF file lacks a usable {error}. Download it again.") from error


class _Tensors:
    """The tensors of a file, dequantised when taken; each can be taken once."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> Weights:
        try:
            tensor = self._tensors.pop(name)
        except KeyError as error:
            raise CorruptModel(f"The GGUF file has no tensor {name}. Download it again.") from error
        try:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UnsupportedModel(
                f"Tensor {name} has the type {tensor.tensor_type.name}, which cannot be converted."
                " Choose a Q4, Q5, Q6, Q8 or F16 file of this model."
            ) from error
        if not np.isfinite(weights).all():
            raise CorruptModel(f"Tensor {name} holds values that are not numbers. Download it again.")
        # Unquantised tensors are views of the read-only file; the specification scales in place.
        return np.require(weights, np.float32, ["C", "W"])

    def require_none_left(self) -> None:
        if self._tensors:
            listed = ", ".join(sorted(self._tensors)[:5])
            raise UnsupportedModel(
                f"The GGUF file has {len(self._tensors)} tensors that a Llama model does not have ({listed})."
                " Choose a plain Llama-architecture model."
            )


def convert_gguf(
    gguf_path: Path, target: Path, *, quantization: str = "int8", progress: Progress = lambda line: None
) -> ConvertedModel:
    """Write the model of ``gguf_path`` into the existing empty directory ``target``.

    ``quantization`` is a CTranslate2 weight type. Raises ``UnsupportedModel``,
    ``CorruptModel`` and, from the file system, ``OSError``.
    """
    reader = _open(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    shape = LlamaShape.from_metadata(metadata)
    try:
        tokenizer = GgufTokenizer.from_metadata(metadata)
    except UnsupportedTokenizer as error:
        raise UnsupportedModel(str(error)) from error
    progress(f"Converting {shape.layers} layers of {gguf_path.name} to {quantization}")
    specification = _specification(shape, tensors=_Tensors(reader))
    if quantization.startswith("int8"):
        progress("Smoothing activations for 8-bit arithmetic")
        _smooth(specification, shape=shape, tokenizer=tokenizer)
    _finish(specification, shape=shape, tokenizer=tokenizer, quantization=quantization)
    progress("Writing the converted weights")
    specification.save(str(target))
    tokenizer.tokenizer().save(str(target / TOKENIZER_FILE))
    (target / CHAT_TEMPLATE_FILE).write_text(tokenizer.chat_template, encoding="utf-8")
    return ConvertedModel(
        architecture=ARCHITECTURE,
        context_length=shape.context_length,
        vocabulary_size=len(tokenizer.tokens),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        end_token_ids=tokenizer.end_token_ids,
        quantization=quantization,
    )


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError as error:
        raise CorruptModel(f"{path} does not exist. Check the path.") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise CorruptModel(f"{path} is not a complete GGUF file ({error}). Download it again.") from error


def _refuse_unsupported(metadata: dict[str, Any]) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedModel(
            f"The architecture {architecture!r} is not supported, only {ARCHITECTURE!r} is."
            " Choose a Llama-family GGUF, or add a CTranslate2 directory."
        )
    if int(metadata.get("llama.expert_count", 0)) > 0:
        raise UnsupportedModel("Mixtures of experts are not supported. Choose a dense Llama model.")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedModel(f"Rotary scaling {scaling!r} is not supported. Choose a model without it.")


def _specification(shape: LlamaShape, *, tensors: _Tensors) -> transformer_spec.TransformerDecoderModelSpec:
    specification = transformer_spec.TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=shape.rotary_base,
        num_heads_kv=None if shape.heads_kv == shape.heads else shape.heads_kv,
    )
    decoder = specification.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = tensors.take("token_embd.weight")
    decoder.layer_norm.gamma = tensors.take("output_norm.weight")
    tied = "output.weight" not in tensors
    decoder.projection.weight = decoder.embeddings.weight if tied else tensors.take("output.weight")
    for number, layer in enumerate(decoder.layer):
        _fill_layer(layer, prefix=f"blk.{number}", tensors=tensors, shape=shape)
    tensors.require_none_left()
    return specification


def _fill_layer(layer: Any, *, prefix: str, tensors: _Tensors, shape: LlamaShape) -> None:
    query = _unpermuted(tensors.take(f"{prefix}.attn_q.weight"), heads=shape.heads)
    key = _unpermuted(tensors.take(f"{prefix}.attn_k.weight"), heads=shape.heads_kv)
    value = tensors.take(f"{prefix}.attn_v.weight")
    layer.self_attention.layer_norm.gamma = tensors.take(f"{prefix}.attn_norm.weight")
    layer.self_attention.linear[0].weight = np.concatenate([query, key, value])
    layer.self_attention.linear[1].weight = tensors.take(f"{prefix}.attn_output.weight")
    layer.ffn.layer_norm.gamma = tensors.take(f"{prefix}.ffn_norm.weight")
    layer.ffn.linear_0.weight = tensors.take(f"{prefix}.ffn_gate.weight")
    layer.ffn.linear_0_noact.weight = tensors.take(f"{prefix}.ffn_up.weight")
    layer.ffn.linear_1.weight = tensors.take(f"{prefix}.ffn_down.weight")


def _unpermuted(weights: Weights, *, heads: int) -> Weights:
    """Undo the row order of llama.cpp (rotary pairs interleaved): back to halves per head."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _smooth(
    specification: transformer_spec.TransformerDecoderModelSpec, *, shape: LlamaShape, tokenizer: GgufTokenizer
) -> None:
    encode = tokenizer.tokenizer().encode
    smooth(
        specification.decoder,
        shape=AttentionShape(
            heads=shape.heads,
            heads_kv=shape.heads_kv,
            rotary_base=shape.rotary_base,
            epsilon=shape.epsilon,
        ),
        prompts=[encode(text).ids[: shape.context_length] for text in CALIBRATION_TEXTS],
    )


def _finish(
    specification: transformer_spec.TransformerDecoderModelSpec,
    *,
    shape: LlamaShape,
    tokenizer: GgufTokenizer,
    quantization: str,
) -> None:
    tokens = tokenizer.tokens
    specification.register_vocabulary(list(tokens))
    config = specification.config
    config.bos_token = tokens[tokenizer.bos_token_id or 0]
    config.eos_token = tokens[tokenizer.eos_token_id]
    config.unk_token = tokens[tokenizer.unknown_token_id]
    config.layer_norm_epsilon = shape.epsilon
    try:
        specification.validate()
    except ValueError as error:
        raise CorruptModel(f"The GGUF file contradicts itself ({error}). Download it again.") from error
    specification.optimize(quantization=quantization)
