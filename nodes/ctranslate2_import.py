"""What a ready CTranslate2 directory from elsewhere says about itself.

Guarantees: only plain files are taken, by name; what the manifest needs (end tokens, context
length, chat template) is found in the directory or the directory is refused with the missing item
named. Never runs code of the directory, copies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes.converted_model import ConvertedModel
from nodes.model_manifest import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILES,
    WEIGHTS_FILE,
    CorruptModel,
    read_vocabulary,
)

_CONFIG_FILE = "config.json"
_HINT_FILES = ("tokenizer_config.json", "generation_config.json")
# Above this a "maximum length" is a placeholder that means "unknown".
_MAX_CONTEXT = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryDescription:
    """The files to copy by name, and what was learnt from them."""

    files: Mapping[str, Path]
    chat_template: str
    converted: ConvertedModel

    def as_converted(self) -> ConvertedModel:
        """What the manifest needs to know."""
        return self.converted

    def write_chat_template(self, directory: Path) -> None:
        """Write the template, wherever it was found, as a file of its own."""
        (directory / CHAT_TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")


def describe_directory(
    source: Path, *, context_length: int | None, chat_template: str | None = None
) -> DirectoryDescription:
    """Read ``source``. ``context_length`` (token ids) and ``chat_template`` win over what the directory says.

    Raises ``CorruptModel``.
    """
    files = _files(source)
    config = _json(source / _CONFIG_FILE)
    hints = read_hints(source)
    vocabulary = read_vocabulary(source)
    ids = {token: number for number, token in enumerate(vocabulary)}
    eos = _token_id(config.get("eos_token"), ids=ids)
    if eos is None:
        raise CorruptModel(f"{source / _CONFIG_FILE} names no eos_token of the vocabulary. Add it there.")
    context = context_length or _context(hints)
    if context is None:
        raise CorruptModel(f"{source} does not say its context length. Give it with --context-length.")
    return DirectoryDescription(
        files=files,
        chat_template=chat_template or find_chat_template(source, hints=hints),
        converted=ConvertedModel(
            architecture=str(config.get("model_type", "ctranslate2")),
            context_length=context,
            vocabulary_size=len(vocabulary),
            bos_token_id=_token_id(config.get("bos_token"), ids=ids),
            eos_token_id=eos,
            end_token_ids=_end_token_ids(eos, hints=hints, ids=ids),
            quantization=str(config.get("quantization_type") or "as converted"),
        ),
    )


def _files(source: Path) -> dict[str, Path]:
    vocabulary = next((name for name in VOCABULARY_FILES if (source / name).exists()), VOCABULARY_FILES[0])
    files = {name: source / name for name in (WEIGHTS_FILE, _CONFIG_FILE, vocabulary, TOKENIZER_FILE)}
    for name, path in files.items():
        if path.is_symlink() or not path.is_file():
            raise CorruptModel(f"{path} is missing or not a plain file. A model needs {', '.join(files)}; add {name}.")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptModel(f"{path} is unreadable ({error}). Get the model again.") from error
    if not isinstance(document, dict):
        raise CorruptModel(f"{path} is not a JSON object. Get the model again.")
    return document


def read_hints(source: Path) -> dict[str, Any]:
    """What the tokenizer's and the generation's configuration say together. Raises ``CorruptModel``."""
    hints: dict[str, Any] = {}
    for name in _HINT_FILES:
        hints |= _json(source / name) if (source / name).is_file() else {}
    return hints


def find_chat_template(source: Path, *, hints: Mapping[str, Any]) -> str:
    """The template as a file of its own or inside the configuration. Raises ``CorruptModel``."""
    path = source / CHAT_TEMPLATE_FILE
    if path.is_file() and not path.is_symlink():
        return path.read_text(encoding="utf-8")
    template = hints.get("chat_template")
    if isinstance(template, str):
        return template
    raise CorruptModel(
        f"{source} has no {CHAT_TEMPLATE_FILE}. Give it with --chat-template FILE, or choose an"
        " instruction-tuned model."
    )


def _context(hints: Mapping[str, Any]) -> int | None:
    length = hints.get("model_max_length")
    return length if isinstance(length, int) and 0 < length <= _MAX_CONTEXT else None


def _end_token_ids(eos: int, *, hints: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[int, ...]:
    declared = hints.get("eos_token_id", [])
    listed = declared if isinstance(declared, list) else [declared]
    named = _token_id(hints.get("eos_token"), ids=ids)
    found = {eos, *(token for token in listed if isinstance(token, int) and 0 <= token < len(ids))}
    return tuple(sorted(found if named is None else found | {named}))


def _token_id(token: Any, *, ids: Mapping[str, int]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None
