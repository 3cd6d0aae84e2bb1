"""The tokenizer that a GGUF file describes, rebuilt as a ``tokenizers`` byte-level BPE.

Guarantees: every token keeps its id, and a file whose splitting rule is not known is refused
instead of being tokenized almost right. Does not read files and does not support SentencePiece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

# Token types of the GGUF format.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

# Control tokens that end an answer in one of the known chat formats, besides the declared ones.
_END_TOKENS = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"}
)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class UnsupportedTokenizer(Exception):
    """The vocabulary is of a kind that cannot be rebuilt exactly; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """Vocabulary, merges and special tokens of a GGUF file; all ids are token ids."""

    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: str
    bos_token_id: int | None
    eos_token_id: int
    unknown_token_id: int
    end_token_ids: tuple[int, ...]
    chat_template: str

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> Self:
        """Read the ``tokenizer.*`` fields. Raises ``UnsupportedTokenizer``."""
        _refuse_unsupported(metadata)
        tokens = tuple(metadata["tokenizer.ggml.tokens"])
        types = tuple(metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens)))
        eos = int(metadata["tokenizer.ggml.eos_token_id"])
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        ids = [eos, bos or 0, *(int(metadata[name]) for name in _END_FIELDS if name in metadata)]
        if len(types) != len(tokens) or any(not 0 <= token < len(tokens) for token in ids):
            raise UnsupportedTokenizer("The GGUF file's vocabulary contradicts itself. Download it again.")
        return cls(
            tokens=tokens,
            token_types=types,
            merges=tuple(_merge(line) for line in metadata["tokenizer.ggml.merges"]),
            pre_tokenizer=str(metadata.get("tokenizer.ggml.pre", "default")),
            bos_token_id=None if bos is None else int(bos),
            eos_token_id=eos,
            unknown_token_id=int(metadata.get("tokenizer.ggml.unknown_token_id", eos)),
            end_token_ids=_end_token_ids(metadata, tokens=tokens, types=types),
            chat_template=str(metadata["tokenizer.chat_template"]),
        )

    def tokenizer(self) -> Tokenizer:
        """The equivalent ``tokenizers`` tokenizer; it adds no token by itself."""
        model = models.BPE(
            vocab={token: number for number, token in enumerate(self.tokens)},
            merges=list(self.merges),
            ignore_merges=self.pre_tokenizer == "llama-bpe",
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[self.pre_tokenizer]()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(self._added(_CONTROL, special=True))
        tokenizer.add_tokens(self._added(_USER_DEFINED, special=False))
        return tokenizer

    def _added(self, kind: int, *, special: bool) -> list[AddedToken]:
        typed = zip(self.tokens, self.token_types, strict=True)
        return [AddedToken(token, special=special, normalized=False) for token, own in typed if own == kind]


_END_FIELDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_REQUIRED_FIELDS = {
    "tokenizer.ggml.tokens": "vocabulary",
    "tokenizer.ggml.merges": "list of merges",
    "tokenizer.ggml.eos_token_id": "end-of-sequence token",
    "tokenizer.chat_template": "chat template",
}


def _refuse_unsupported(metadata: dict[str, Any]) -> None:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedTokenizer(
            f"The tokenizer {kind!r} is not supported, only byte-level BPE ('gpt2') is."
            " Choose another model, or add a CTranslate2 directory with its tokenizer.json."
        )
    splitting = metadata.get("tokenizer.ggml.pre", "default")
    if splitting not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise UnsupportedTokenizer(
            f"The splitting rule {splitting!r} of the tokenizer is not supported ({known} are)."
            " Choose another model, or add a CTranslate2 directory with its tokenizer.json."
        )
    for name, noun in _REQUIRED_FIELDS.items():
        if name not in metadata:
            raise UnsupportedTokenizer(f"The GGUF file has no {noun}. Choose an instruction-tuned model.")


def _end_token_ids(metadata: dict[str, Any], *, tokens: tuple[str, ...], types: tuple[int, ...]) -> tuple[int, ...]:
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


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_split()])


def _llama3_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2_split,
    "smollm": _smollm_split,
    "llama-bpe": _llama3_split,
}
