"""A SentencePiece vocabulary (scores, spaces as U+2581, byte fallback) as a ``tokenizers`` BPE.

Guarantees: the merges are those that the scores imply, best score first, so that a text is cut as
SentencePiece's BPE cuts it; bytes without a token become byte tokens. Does not support the unigram
model, whose scores mean something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

SPACE = "\u2581"
_NORMAL = 1


def sentencepiece_tokenizer(
    *,
    tokens: Sequence[str],
    scores: Sequence[float],
    token_types: Sequence[int],
    unknown_token: str,
    space_prefix: bool,
) -> Tokenizer:
    """The tokenizer without its added tokens. ``space_prefix``: a text begins as if after a space."""
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=_merges(tokens, scores=scores, token_types=token_types),
        unk_token=unknown_token,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if space_prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_prefix else steps)
    return tokenizer


def _merges(tokens: Sequence[str], *, scores: Sequence[float], token_types: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to make a token out of two others, the better token first.

    Only ordinary tokens take part: what the text says must never become a control or byte token.
    """
    ids = {token: number for number, token in enumerate(tokens) if token_types[number] == _NORMAL}
    ranked = sorted(ids, key=lambda token: (-scores[ids[token]], ids[token]))
    return [pair for token in ranked for pair in _pairs(token, ids)]


def _pairs(token: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
    return iter(sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
