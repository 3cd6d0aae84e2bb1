"""Agreement between a model's own vocabulary and its tokenizer.

Guarantees: after ``check_vocabulary`` every token id means the same text on both sides. CTranslate2
takes tokens as strings and turns unknown ones into its unknown token silently, so a model that
disagrees with its tokenizer would answer nonsense without an error. Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from nodes.model_manifest import ModelError

# What CTranslate2's converters append where the weights have more rows than the tokenizer tokens.
_PADDING = re.compile(r"<extra_id_\d+>|madeupword\d+")


class VocabularyMismatch(ModelError):
    """The tokenizer and the model do not name the same tokens."""


def check_vocabulary(vocabulary: Sequence[str], *, tokenizer: Tokenizer) -> None:
    """Raise ``VocabularyMismatch`` unless both sides have the same tokens with the same ids.

    Padding that a converter appended to the model's vocabulary is allowed.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        raise VocabularyMismatch(
            f"{len(vocabulary) - len(ids)} tokens of the model's vocabulary occur twice. {_ADVICE}"
        )
    known = tokenizer.get_vocab(with_added_tokens=True)
    unknown = [token for token, number in known.items() if ids.get(token) != number]
    unused = [token for token in vocabulary if token not in known and not _PADDING.fullmatch(token)]
    if unknown or unused:
        example = (unknown or unused)[0]
        raise VocabularyMismatch(
            f"The tokenizer and the model disagree on {len(unknown) + len(unused)} tokens"
            f" (for example {example!r}). {_ADVICE}"
        )


_ADVICE = "Add the model together with the tokenizer.json that it was converted with."
