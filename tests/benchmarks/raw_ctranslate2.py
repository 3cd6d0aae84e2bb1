"""Tokens per second of CTranslate2 alone: the yardstick for what the engine process adds.

Same files, same placement, same options and same prompt as the engine, but no scheduler, no socket
and no callback. Importable; run ``python -m tests.benchmarks.raw_ctranslate2 MODEL_DIRECTORY``.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from jobs.inference.engine import ChatMessage
from jobs.inference.placement import choose_placement, create_generator
from jobs.inference.prompt import PromptTemplate
from nodes.model_manifest import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, read_manifest, read_vocabulary

PROMPT = "Tell me a long story about a dragon."


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """``tokens`` completion tokens of ``streams`` parallel streams in ``seconds`` of wall-clock time."""

    streams: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def measure(directory: Path, *, streams: int = 1, max_tokens: int = 200, prompt: str = PROMPT) -> Measurement:
    """Generate greedily, after a short warm-up."""
    manifest, vocabulary = read_manifest(directory), read_vocabulary(directory)
    template = PromptTemplate(
        (directory / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8"),
        tokenizer=Tokenizer.from_file(str(directory / TOKENIZER_FILE)),
    )
    tokens = [vocabulary[token] for token in template.encode([ChatMessage(role="user", content=prompt)])]
    generator = create_generator(directory, placement=choose_placement())

    def generate(limit: int) -> int:
        (result,) = generator.generate_batch(
            [tokens],
            max_length=limit,
            include_prompt_in_result=False,
            end_token=list(manifest.end_token_ids),
            sampling_topk=1,
        )
        return len(result.sequences_ids[0])

    with ThreadPoolExecutor(streams) as threads:
        list(threads.map(generate, [8] * streams))
        started = time.perf_counter()
        produced = sum(threads.map(generate, [max_tokens] * streams))
        seconds = time.perf_counter() - started
    return Measurement(streams=streams, tokens=produced, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="CTranslate2 alone, in tokens per second.")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    for streams in (1, 2, 4):
        found = measure(arguments.directory, streams=streams)
        print(f"{streams} streams: {found.tokens_per_second:.1f} tokens/s ({found.tokens} tokens)")


if __name__ == "__main__":
    main()
