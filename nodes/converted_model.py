"""What a conversion reports about the model that it wrote.

Holds values only: the converters make them and the model store writes them into the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nodes.model_manifest import ConversionCheck, ModelError

Progress = Callable[[str], None]

# The weight types that CTranslate2 computes with on a CPU and on a GPU, and that need no torch to write.
QUANTIZATIONS = ("int8", "float16", "float32")


class UnsupportedModel(ModelError):
    """The file is sound but holds something that this software cannot run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """What the manifest needs to know about a conversion. ``context_length`` is in token ids.

    ``check`` is None where there was no reference to compare with.
    """

    architecture: str
    context_length: int
    vocabulary_size: int
    bos_token_id: int | None
    eos_token_id: int
    end_token_ids: tuple[int, ...]
    quantization: str
    check: ConversionCheck | None = None
