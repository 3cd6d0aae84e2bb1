"""From completion token ids to text, step by step.

Guarantees: no step ends inside a character, and all steps together with the final flush are exactly
what decoding all ids at once gives, including the replacement characters of broken sequences.
Control tokens give no text. Does not know stop sequences.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tokenizers import Tokenizer, decoders

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The state of one stream of token ids."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these ids complete; possibly empty."""
        ...

    def flush(self) -> str:
        """The rest at the end of the stream; an unfinished character is one replacement character."""
        ...


class Utf8Detokenizer:
    """For tokenizers whose tokens are byte strings, such as byte-level BPE. Constant time per id."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowedDetokenizer:
    """For any other tokenizer: decodes the unfinished ids together with the last finished ones."""

    def __init__(self, tokenizer: Tokenizer, *, special_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._finished: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        return "".join(self._step(token) for token in token_ids if token not in self._special_ids)

    def flush(self) -> str:
        text = self._pending_text()
        self._finished, self._pending = self._pending, []
        return text

    def _step(self, token: int) -> str:
        self._pending.append(token)
        name = self._tokenizer.id_to_token(token)
        # A run of byte tokens is decoded as a whole (all or nothing), so wait for its end.
        if name is None or _BYTE_TOKEN.fullmatch(name):
            return ""
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._finished, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._finished, skip_special_tokens=True)
        return self._tokenizer.decode(self._finished + self._pending, skip_special_tokens=True)[len(before) :]


class DetokenizerFactory:
    """Makes the right detokenizer for each stream of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(number for number, token in added.items() if token.special)
        byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._bytes = _byte_level_table(tokenizer, silent=self._special_ids) if byte_level else None

    def create(self) -> Detokenizer:
        """A detokenizer at the start of a stream."""
        if self._bytes is None:
            return WindowedDetokenizer(self._tokenizer, special_ids=self._special_ids)
        return Utf8Detokenizer(self.token_bytes)

    def token_bytes(self, token: int) -> bytes:
        """What one id adds to a byte-level text; empty for control tokens and unknown ids."""
        table = self._bytes or ()
        return table[token] if 0 <= token < len(table) else b""


def _byte_level_table(tokenizer: Tokenizer, *, silent: frozenset[int]) -> Sequence[bytes]:
    """The bytes of every token by id; control tokens and holes in the numbering have none."""
    alphabet = _byte_alphabet()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        if number in silent:
            continue
        values = [alphabet.get(character) for character in token]
        known = [value for value in values if value is not None]
        table[number] = bytes(known) if len(known) == len(values) else token.encode()
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: 188 bytes stand for themselves, the others for U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(shifted)}
