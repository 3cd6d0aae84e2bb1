"""Comparison of a stored model with a reference, before it may be served and whenever asked for.

Guarantees: a model that predicts something else than its reference on a short text (swapped rows, a
wrong rotary embedding, the wrong vocabulary, damaged weights) is refused with the figures; the
reference's own predictions are kept beside the model, so that the comparison can be repeated
without the original weights. One short text says nothing about how good a model is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import ctranslate2
import numpy as np

from nodes.gguf_tensors import Weights
from nodes.model_manifest import ConversionCheck, CorruptModel, ModelError, read_vocabulary

REFERENCE_FILE = "reference.json"
CHECK_TEXT = (
    "The old lighthouse on the cliff was built in 1874. Every evening the keeper climbed 212 steps, lit the lamp"
    " and wrote the weather into a book. One night in March a storm broke the windows, and the light went out."
    " He took a lantern, went up again and held it until the morning, because ships were still at sea."
)
CHECK_TOKENS = 64
# Measured on the built-in model: 8 bits agree at 86 to 98 % of the positions (rounding differs between
# processors) with a perplexity ratio of 1.02 to 1.04; with the query rows in the wrong order, at 38 %
# with a ratio of 3.4.
_LEAST_AGREEMENT = {"int8": 0.65, "float16": 0.95, "float32": 0.97}
_WORST_RATIO = {"int8": 1.2, "float16": 1.02, "float32": 1.01}
# Plain English: a sound model stays below 100, a scrambled one has thousands.
_WORST_PERPLEXITY = 1000.0
# Choices closer than this (in nats) are ties that rounding may decide either way.
_TIE = {"int8": 0.1, "float16": 0.01, "float32": 0.001}
_KEPT_CHOICES = 8


class CheckFailed(ModelError):
    """The stored model does not do what its reference does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceScores:
    """What the reference predicts on a text: per position but the last, its first choices with their

    log probabilities (best first), and the log probability of the token that really follows.
    """

    source: str
    token_ids: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    choice_scores: tuple[tuple[float, ...], ...]
    next_scores: tuple[float, ...]

    @classmethod
    def of(cls, log_probabilities: Weights, *, token_ids: Sequence[int], source: str) -> Self:
        """From positions by vocabulary."""
        scores = log_probabilities[:-1]
        order = _best_choices(scores)
        return cls(
            source=source,
            token_ids=tuple(int(token) for token in token_ids),
            choices=tuple(tuple(int(token) for token in row) for row in order),
            choice_scores=tuple(
                tuple(round(float(score), 6) for score in row) for row in np.take_along_axis(scores, order, axis=-1)
            ),
            next_scores=tuple(round(float(score), 6) for score in _next_scores(scores, token_ids)),
        )

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """What is kept beside the model; None if nothing is. Raises ``CorruptModel``."""
        path = directory / REFERENCE_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                source=str(document["source"]),
                token_ids=tuple(map(int, document["token_ids"])),
                choices=tuple(tuple(map(int, row)) for row in document["choices"]),
                choice_scores=tuple(tuple(map(float, row)) for row in document["choice_scores"]),
                next_scores=tuple(map(float, document["next_scores"])),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptModel(f"{path} is unreadable ({error}). Remove and add the model again.") from error

    def write(self, directory: Path) -> None:
        """Keep it beside the model."""
        (directory / REFERENCE_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def check_tokens(ids: Sequence[int], *, bos_token_id: int | None, context_length: int) -> tuple[int, ...]:
    """The ids of ``CHECK_TEXT`` as they are checked: begun as the model expects, and not too many."""
    begun = [*([] if bos_token_id is None else [bos_token_id]), *ids]
    return tuple(begun[: min(CHECK_TOKENS + 1, context_length)])


def check_against_reference(directory: Path, *, reference: ReferenceScores, quantization: str) -> ConversionCheck:
    """Compare the stored model with its reference. Raises ``CheckFailed``."""
    if len(reference.token_ids) < 2:
        raise CheckFailed("The check's text gives less than two tokens. The model's tokenizer is not usable.")
    scores = _stored_scores(directory, reference.token_ids, quantization=quantization)[:-1]
    loss = -float(np.mean(_next_scores(scores, reference.token_ids)))
    ratio = math.exp(loss + float(np.mean(reference.next_scores)))
    agreement = _agreement(scores, reference, tie=_TIE[quantization])
    check = ConversionCheck(
        method=f"{quantization} against {reference.source}",
        tokens=len(scores),
        perplexity=round(math.exp(loss), 4),
        agreement=round(agreement, 4),
        perplexity_ratio=round(ratio, 4),
    )
    worst = _WORST_RATIO[quantization]
    if agreement < _LEAST_AGREEMENT[quantization] or not 1 / worst <= ratio <= worst:
        raise CheckFailed(
            f"The converted model disagrees with its reference: the same token at {agreement:.0%} of"
            f" {check.tokens} positions, {ratio:.3g} times the perplexity. It is not served."
            " Use a less quantised file of this model, or --quantization float16; else report it with the file's name."
        )
    return check


def check_without_reference(directory: Path, *, token_ids: Sequence[int]) -> ConversionCheck:
    """The perplexity on plain English of a model that came ready. Raises ``CheckFailed``."""
    if len(token_ids) < 2:
        raise CheckFailed("The check's text gives less than two tokens. The model's tokenizer is not usable.")
    scores = _stored_scores(directory, token_ids, quantization="default")[:-1]
    perplexity = math.exp(min(-float(np.mean(_next_scores(scores, token_ids))), 700.0))
    if not perplexity <= _WORST_PERPLEXITY:
        raise CheckFailed(
            f"The model's perplexity on plain English is {perplexity:.0f}; above {_WORST_PERPLEXITY:.0f} it is"
            " taken for damaged or converted with another tokenizer. Convert it again from its GGUF or safetensors."
        )
    return ConversionCheck(method="perplexity only", tokens=len(scores), perplexity=round(perplexity, 4))


def _stored_scores(directory: Path, token_ids: Sequence[int], *, quantization: str) -> Weights:
    """The stored model's log probabilities, positions by vocabulary, as the engine would compute them on a CPU."""
    compute_type = {"int8": "int8", "default": "default"}.get(quantization, "float32")
    vocabulary = read_vocabulary(directory)
    tokens = [vocabulary[token] for token in token_ids]
    try:
        generator = ctranslate2.Generator(str(directory), device="cpu", compute_type=compute_type)
        scores: Any = generator.forward_batch([tokens], return_log_probs=True)
        found: Weights = np.array(scores, dtype=np.float32)[0]
    except (RuntimeError, ValueError) as error:
        raise CheckFailed(f"CTranslate2 cannot run the model: {error}. Convert it again.") from error
    if not np.isfinite(found.max(axis=-1)).all():
        raise CheckFailed("The converted model computes values that are not numbers. Use another file of this model.")
    return found


def _best_choices(scores: Weights) -> Any:
    """The ids of the few largest per row, largest first."""
    kept = min(_KEPT_CHOICES, scores.shape[-1])
    some = np.argpartition(scores, -kept, axis=-1)[:, -kept:]
    order = np.argsort(-np.take_along_axis(scores, some, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(some, order, axis=-1)


def _next_scores(scores: Weights, token_ids: Sequence[int]) -> Weights:
    found: Weights = scores[np.arange(len(scores)), list(token_ids[1 : len(scores) + 1])]
    return found


def _agreement(scores: Weights, reference: ReferenceScores, *, tie: float) -> float:
    """The share of positions with the same first choice; one that the reference all but ties with its own counts."""
    agreed = 0
    for choice, ids, values in zip(scores.argmax(axis=-1), reference.choices, reference.choice_scores, strict=True):
        known = dict(zip(ids, values, strict=True))
        agreed += known.get(int(choice), -math.inf) >= values[0] - tie
    return agreed / len(scores)
