"""The tokenizer that a GGUF file describes, rebuilt for the ``tokenizers`` library.

Guarantees: every token keeps its id, and a file whose kind of vocabulary or splitting rule is not
known is refused by name instead of being tokenized almost right. Covers byte-level BPE ("gpt2") and
SentencePiece BPE ("llama"). Reads no files and does not interpret the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer, decoders, models

from nodes.sentencepiece_vocabulary import SPACE, sentencepiece_tokenizer
from nodes.token_splitting import SPLITTINGS

# Token types of the GGUF format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

# Control tokens that end an answer in one of the known chat formats, besides the declared ones.
_END_TOKENS = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"}
)
_END_FIELDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_KINDS = {
    "gpt2": {"tokenizer.ggml.merges": "list of merges"},
    "llama": {"tokenizer.ggml.scores": "list of token scores"},
}
_REQUIRED = {"tokenizer.ggml.tokens": "vocabulary", "tokenizer.ggml.eos_token_id": "end-of-sequence token"}


class UnsupportedTokenizer(Exception):
    """The vocabulary is of a kind that cannot be rebuilt exactly; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """Vocabulary and special tokens of a GGUF file; all ids are token ids.

    ``kind`` is "gpt2", with ``merges`` and a ``splitting`` rule, or "llama", with ``scores``.
    """

    kind: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    splitting: str
    space_prefix: bool
    bos_token_id: int | None
    eos_token_id: int
    unknown_token_id: int
    end_token_ids: tuple[int, ...]
    chat_template: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, chat_template: str | None = None) -> Self:
        """Read the ``tokenizer.*`` fields; ``chat_template`` wins over the file's. Raises ``UnsupportedTokenizer``."""
        kind = _supported_kind(metadata)
        tokens = tuple(metadata["tokenizer.ggml.tokens"])
        types = tuple(metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens)))
        scores = tuple(metadata.get("tokenizer.ggml.scores", ())) if kind == "llama" else ()
        eos = int(metadata["tokenizer.ggml.eos_token_id"])
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        unknown = int(metadata.get("tokenizer.ggml.unknown_token_id", _unknown(types, otherwise=eos)))
        ids = [eos, bos or 0, unknown, *(int(metadata[name]) for name in _END_FIELDS if name in metadata)]
        contradicting = len(types) != len(tokens) or any(not 0 <= token < len(tokens) for token in ids)
        if contradicting or (kind == "llama" and len(scores) != len(tokens)):
            raise UnsupportedTokenizer("The GGUF file's vocabulary contradicts itself. Download it again.")
        _refuse_unreachable(tokens, types=types, kind=kind)
        return cls(
            kind=kind,
            tokens=tokens,
            token_types=types,
            merges=tuple(_merge(line) for line in metadata["tokenizer.ggml.merges"]) if kind == "gpt2" else (),
            scores=scores,
            splitting=_splitting(metadata) if kind == "gpt2" else "",
            space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
            bos_token_id=None if bos is None else int(bos),
            eos_token_id=eos,
            unknown_token_id=unknown,
            end_token_ids=_end_token_ids(metadata, tokens=tokens, types=types),
            chat_template=_chat_template(metadata, given=chat_template),
        )

    def tokenizer(self) -> Tokenizer:
        """The equivalent ``tokenizers`` tokenizer; it adds no token by itself."""
        tokenizer = self._byte_level() if self.kind == "gpt2" else self._sentencepiece()
        special = (_CONTROL,) if self.kind == "gpt2" else (_CONTROL, _UNKNOWN)
        tokenizer.add_special_tokens(self._added(special, special=True))
        tokenizer.add_tokens(self._added((_USER_DEFINED,), special=False))
        return tokenizer

    def _byte_level(self) -> Tokenizer:
        rule = SPLITTINGS[self.splitting]
        model = models.BPE(
            vocab={token: number for number, token in enumerate(self.tokens)},
            merges=list(self.merges),
            ignore_merges=rule.whole_first,
        )
        tokenizer = Tokenizer(model)
        normalizer = rule.normalizer()
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = rule.pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece(self) -> Tokenizer:
        return sentencepiece_tokenizer(
            tokens=self.tokens,
            scores=self.scores,
            token_types=self.token_types,
            unknown_token=self.tokens[self.unknown_token_id],
            space_prefix=self.space_prefix,
        )

    def _added(self, kinds: tuple[int, ...], *, special: bool) -> list[AddedToken]:
        typed = zip(self.tokens, self.token_types, strict=True)
        return [AddedToken(token, special=special, normalized=False) for token, own in typed if own in kinds]


def _supported_kind(metadata: Mapping[str, Any]) -> str:
    kind = str(metadata.get("tokenizer.ggml.model"))
    if kind not in _KINDS:
        raise UnsupportedTokenizer(
            f"The tokenizer {kind!r} is not supported, only byte-level BPE ('gpt2') and SentencePiece BPE ('llama')"
            " are. Choose another model, or add a Hugging Face or CTranslate2 directory with its tokenizer.json."
        )
    for name, noun in (_REQUIRED | _KINDS[kind]).items():
        if name not in metadata:
            raise UnsupportedTokenizer(f"The GGUF file has no {noun}. Download a complete file of this model.")
    return kind


def _splitting(metadata: Mapping[str, Any]) -> str:
    splitting = str(metadata.get("tokenizer.ggml.pre", "default"))
    if splitting not in SPLITTINGS:
        raise UnsupportedTokenizer(
            f"The splitting rule {splitting!r} of the tokenizer is not supported ({', '.join(sorted(SPLITTINGS))}"
            " are). Choose another model, or add a Hugging Face or CTranslate2 directory with its tokenizer.json."
        )
    return splitting


def _chat_template(metadata: Mapping[str, Any], *, given: str | None) -> str:
    template = given if given is not None else metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template.strip():
        raise UnsupportedTokenizer(
            "The GGUF file has no chat template. Choose an instruction-tuned model, or give its template with"
            " --chat-template FILE."
        )
    return template


def _refuse_unreachable(tokens: Sequence[str], *, types: Sequence[int], kind: str) -> None:
    """User-defined tokens are found in the raw text, where a SentencePiece space sign never stands."""
    for token, own in zip(tokens, types, strict=True):
        if kind == "llama" and own == _USER_DEFINED and SPACE in token:
            raise UnsupportedTokenizer(
                f"The user-defined token {token!r} contains a space sign, which is not supported."
                " Choose another model, or add a Hugging Face directory with its tokenizer.json."
            )


def _unknown(types: Sequence[int], *, otherwise: int) -> int:
    return types.index(_UNKNOWN) if _UNKNOWN in types else otherwise


def _end_token_ids(metadata: Mapping[str, Any], *, tokens: tuple[str, ...], types: tuple[int, ...]) -> tuple[int, ...]:
    declared = {int(metadata[name]) for name in _END_FIELDS if name in metadata}
    known = {
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _CONTROL and token in _END_TOKENS
    }
    return tuple(sorted(declared | known))


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right
