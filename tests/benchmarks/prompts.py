"""Prompts of a wanted length in token ids, each about something else, so that no server can share work."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from jobs.inference.engine import ChatMessage
from jobs.inference.prompt import PromptTemplate
from nodes.model_manifest import CHAT_TEMPLATE_FILE, TOKENIZER_FILE

_WORDS = ("river", "lantern", "harbour", "engine", "garden", "teacher", "violin", "island", "letter", "planet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """``text`` is ``tokens`` ids long in the model's chat template; ``limit`` completion ids are asked for."""

    text: str
    tokens: int
    limit: int


class PromptWriter:
    """Writes prompts for one model."""

    def __init__(self, directory: Path) -> None:
        self._template = PromptTemplate(
            (directory / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8"),
            tokenizer=Tokenizer.from_file(str(directory / TOKENIZER_FILE)),
        )

    def prompt(self, *, tokens: int, limit: int, seed: int) -> Prompt:
        """A request for a long story that is ``tokens`` ids long, or a few more where the words do not fit."""
        words = random.Random(seed)
        text = f"Tell a very long story, number {100 + seed}."
        while self._length(text + " It has") < tokens:
            text += f" It has a {words.choice(_WORDS)}."
        while self._length(text) < tokens:
            text += " so"
        return Prompt(text=text, tokens=self._length(text), limit=limit)

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt as the engine sees it."""
        return self._template.encode([ChatMessage(role="user", content=prompt.text)])

    def _length(self, text: str) -> int:
        return len(self._template.encode([ChatMessage(role="user", content=text)]))


def equal(writer: PromptWriter, *, streams: int, first: int = 0, tokens: int = 40, limit: int = 120) -> list[Prompt]:
    """Prompts of one length, numbered from ``first``: a server that remembers prompts must not know them."""
    return [writer.prompt(tokens=tokens, limit=limit, seed=first + number) for number in range(streams)]


def mixed(writer: PromptWriter, *, streams: int = 32, first: int = 0, limit: int = 60) -> list[Prompt]:
    """Prompts of 20 to 800 ids, uniformly, in random order; the same lengths in every run."""
    lengths = random.Random(20_800)
    wanted = [max(32, lengths.randint(20, 800)) for _ in range(streams)]
    return [writer.prompt(tokens=tokens, limit=limit, seed=first + number) for number, tokens in enumerate(wanted)]
