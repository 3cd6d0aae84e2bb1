"""Conversion of a Hugging Face directory of safetensors, by CTranslate2's own converter.

The converter needs torch and transformers, which serving does not: they are an optional extra
(``requirements-models.txt``), and run in a process of their own, in any interpreter that has them.
Guarantees: weights are read from safetensors only, never from pickles; a model that brings its own
code is refused, the code is never run; the process has no access to the hub.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from nodes.conversion_check import ReferenceScores, check_against_reference
from nodes.converted_model import QUANTIZATIONS, ConvertedModel, Progress, UnsupportedModel
from nodes.ctranslate2_import import find_chat_template, read_hints
from nodes.model_manifest import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILES,
    WEIGHTS_FILE,
    CorruptModel,
    ModelError,
)

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = "nodes.transformers_conversion"
_CONFIG_FILE = "config.json"
_OWN_CODE = "auto_map"
_FACTS_FILE = "facts.json"


class ExtraMissing(ModelError):
    """The interpreter lacks the packages that read safetensors."""


def is_huggingface_directory(path: Path) -> bool:
    """Whether the directory is one that transformers would load, not a CTranslate2 model."""
    ready = any((path / name).exists() for name in (WEIGHTS_FILE, *VOCABULARY_FILES))
    return (path / _CONFIG_FILE).is_file() and not ready


def weights_of(path: Path) -> tuple[Path, ...]:
    """The safetensors files of the directory. Raises ``UnsupportedModel`` if there are none."""
    found = tuple(sorted(path.glob("*.safetensors")))
    if not found:
        raise UnsupportedModel(
            f"{path} has no .safetensors files. Pickled weights (.bin, .pt) can run code and are not read;"
            " choose a revision with safetensors."
        )
    return found


def convert_huggingface(
    source: Path,
    target: Path,
    *,
    scratch: Path,
    interpreter: Path,
    quantization: str,
    chat_template: str | None = None,
    progress: Progress = lambda line: None,
) -> ConvertedModel:
    """Convert ``source`` into the existing empty directory ``target``, check it, describe it.

    ``interpreter`` is a Python with ``requirements-models.txt``. Raises ``UnsupportedModel``,
    ``CorruptModel``, ``ExtraMissing`` and ``CheckFailed``.
    """
    if quantization not in QUANTIZATIONS:
        raise UnsupportedModel(f"{quantization!r} is no weight type. Use {', '.join(QUANTIZATIONS)}.")
    _require_data_only(source)
    weights_of(source)
    template = chat_template or find_chat_template(source, hints=read_hints(source))
    progress(f"Converting {source.name} to {quantization} with transformers (this loads it in single precision)")
    facts = _run(source, scratch=scratch, interpreter=interpreter, quantization=quantization, progress=progress)
    for path in (scratch / "model").iterdir():
        path.rename(target / path.name)
    (target / TOKENIZER_FILE).write_bytes((source / TOKENIZER_FILE).read_bytes())
    (target / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    reference = ReferenceScores.read(target)
    if reference is None:
        raise CorruptModel(f"The converter left no reference for {source}. Try again.")
    progress(f"Checking {len(reference.next_scores)} positions against transformers")
    return ConvertedModel(
        architecture=str(facts["architecture"]),
        context_length=int(facts["context_length"]),
        vocabulary_size=int(facts["vocabulary_size"]),
        bos_token_id=facts["bos_token_id"],
        eos_token_id=int(facts["eos_token_id"]),
        end_token_ids=tuple(int(token) for token in facts["end_token_ids"]),
        quantization=quantization,
        check=check_against_reference(target, reference=reference, quantization=quantization),
    )


def _require_data_only(source: Path) -> None:
    for name in (_CONFIG_FILE, TOKENIZER_FILE):
        path = source / name
        if not path.is_file():
            raise CorruptModel(f"{path} is missing. A model needs {_CONFIG_FILE}, {TOKENIZER_FILE} and safetensors.")
    for name in (_CONFIG_FILE, "tokenizer_config.json"):
        path = source / name
        try:
            document: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise CorruptModel(f"{path} is unreadable ({error}). Get the model again.") from error
        if _OWN_CODE in document:
            raise UnsupportedModel(
                f"{path} names Python code of the model's own ({_OWN_CODE}), which is never run. Choose a model"
                " whose architecture transformers knows, or a GGUF file of it."
            )


def _run(source: Path, *, scratch: Path, interpreter: Path, quantization: str, progress: Progress) -> dict[str, Any]:
    command = ["/usr/bin/env", "HF_HUB_OFFLINE=1", "HF_HUB_DISABLE_TELEMETRY=1", "TOKENIZERS_PARALLELISM=false"]
    command += [str(interpreter), "-m", PROGRAM, str(source.resolve()), str(scratch / "model"), quantization]
    command += [str(scratch / _FACTS_FILE)]
    errors = scratch / "errors.txt"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(  # noqa: S603 fixed program, paths as arguments
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            progress(line.rstrip())
    if process.returncode != 0:
        raise _failure(errors.read_text(encoding="utf-8", errors="replace"), interpreter=interpreter)
    facts: dict[str, Any] = json.loads((scratch / _FACTS_FILE).read_text(encoding="utf-8"))
    return facts


def _failure(errors: str, *, interpreter: Path) -> ModelError:
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
    if "ModuleNotFoundError" in lines[-1] or "No such file or directory" in lines[-1]:
        return ExtraMissing(
            f"{interpreter} cannot read safetensors ({lines[-1]}). Install the extra with `pip install -r"
            " requirements-models.txt`, or name an interpreter that has it with --python."
        )
    return UnsupportedModel(f"CTranslate2's converter refused the model: {lines[-1]}. Choose another, or a GGUF of it.")
