"""The small models of ``small_gguf`` as Hugging Face directories of safetensors. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nodes.gguf_tokenizer import GgufTokenizer
from tests.nodes.small_gguf import CONTEXT, EPSILON, HEADS, HEADS_KV, Array, small_model

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_huggingface(directory: Path, *, kind: str, scaling: dict[str, Any] | None = None) -> None:
    """Write configuration, tokenizer and weights of one of ``small_gguf.KINDS``; ``scaling`` is rotary."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata, tensors = small_model(kind)
    architecture = metadata["general.architecture"]
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in metadata.items()
        if name.startswith(f"{architecture}.")
    }
    config = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS_KV,
        "head_dim": own.get("attention.key_length", own["embedding_length"] // HEADS),
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPSILON,
        "rope_theta": own["rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    if architecture == "smollm3":
        config |= {"no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "pad_token_id": 0}
    if scaling is not None:
        config["rope_scaling"] = scaling
    (directory / "config.json").write_text(json.dumps(config))
    description = GgufTokenizer.from_metadata(metadata)
    description.tokenizer().save(str(directory / "tokenizer.json"))
    tokens = metadata["tokenizer.ggml.tokens"]
    hints = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[1],
        "eos_token": tokens[2],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(hints))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    permuted = architecture in ("llama", "smollm3")
    write_safetensors(directory / "model.safetensors", dict(_renamed(tensors, permuted=permuted)))


def write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    """The format is a header of offsets and the bytes after it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(value).tobytes() for value in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _renamed(tensors: dict[str, Array], *, permuted: bool) -> Any:
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    for name, value in tensors.items():
        if name in fixed:
            yield fixed[name], value
            continue
        _, layer, part, kind = name.split(".")
        heads = {"attn_q": HEADS, "attn_k": HEADS_KV}.get(part, 0)
        if permuted and heads:
            value = _halves(value, heads=heads)
        yield f"model.layers.{layer}.{_NAMES[part]}.{kind}", value


def _halves(rows: Array, *, heads: int) -> Array:
    """Hugging Face's order of the rows: for each head all first rotary values, then all second ones."""
    head = len(rows) // heads
    order = [h * head + place for h in range(heads) for place in [*range(0, head, 2), *range(1, head, 2)]]
    return rows[order]
