"""Program: a Hugging Face directory to CTranslate2, with transformers' own predictions as reference.

Run by ``huggingface_import`` as ``python -m nodes.transformers_conversion SOURCE TARGET TYPE FACTS``
in an interpreter with ``requirements-models.txt``; prints progress, one line each. Guarantees: code
that comes with a model is never run, and rotary scaling is written completely (CTranslate2 4.8
leaves out the factor of Llama 3). Does not download.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]
from ctranslate2.converters import TransformersConverter
from ctranslate2.specs import attention_spec
from tokenizers import Tokenizer

from nodes.conversion_check import CHECK_TEXT, ReferenceScores, check_tokens
from nodes.model_manifest import TOKENIZER_FILE


class Converter(TransformersConverter):  # type: ignore[misc]
    """CTranslate2's converter, which never runs a model's own code, with Llama 3's scaling completed."""

    def __init__(self, source: Path) -> None:
        super().__init__(str(source), low_cpu_mem_usage=True, trust_remote_code=False)
        self._source = source

    def _load(self) -> Any:
        specification = super()._load()
        config = _config(self._source)
        scaling = getattr(config, "rope_scaling", None) or {}
        for layer in specification.decoder.layer:
            attention = layer.self_attention
            if getattr(attention, "rotary_scaling_type", None) == attention_spec.RotaryScalingType.Llama3:
                # The specification has no place for these two, but the library reads them.
                vars(attention).update(
                    rotary_scaling_factor=np.float32(scaling["factor"]),
                    original_max_position_embeddings=np.int32(scaling["original_max_position_embeddings"]),
                )
        return specification


def main(source: Path, target: Path, quantization: str, facts_file: Path) -> None:
    """Convert, and write the reference beside the model and the facts for the manifest."""
    config = _config(source)
    facts = _facts(source, config=config)
    print("Computing the reference", flush=True)  # noqa: T201 the parent reads the lines
    reference = _reference(source, facts=facts)
    print("Converting the weights", flush=True)  # noqa: T201
    Converter(source).convert(str(target), quantization=quantization)
    reference.write(target)
    facts_file.write_text(json.dumps(facts), encoding="utf-8")


def _config(source: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)


def _facts(source: Path, *, config: Any) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    context = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and window > 0 and getattr(config, "use_sliding_window", True):
        context = min(context, window)  # up to its window a model attends to everything
    return {
        "architecture": str(config.model_type),
        "context_length": context,
        "vocabulary_size": int(config.vocab_size),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": int(tokenizer.eos_token_id),
        "end_token_ids": _end_token_ids(source, config=config, eos=int(tokenizer.eos_token_id)),
    }


def _end_token_ids(source: Path, *, config: Any, eos: int) -> list[int]:
    declared = [config.eos_token_id]
    path = source / "generation_config.json"
    if path.is_file():
        declared.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
    found = {eos}
    for value in declared:
        found.update(number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int))
    return sorted(found)


def _reference(source: Path, *, facts: dict[str, Any]) -> ReferenceScores:
    ids = check_tokens(
        Tokenizer.from_file(str(source / TOKENIZER_FILE)).encode(CHECK_TEXT, add_special_tokens=False).ids,
        bos_token_id=facts["bos_token_id"],
        context_length=facts["context_length"],
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0].float()
        scores = torch.log_softmax(logits, dim=-1).numpy()
    return ReferenceScores.of(scores, token_ids=ids, source=f"transformers {transformers.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
