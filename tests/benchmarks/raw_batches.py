"""CTranslate2 alone at its best: batches of like length on one replica per core, no server around it.

Run as a process of its own; reads the prompts' ids as JSON from standard input, prints one JSON object. With
``--first`` it tells the seconds to the first token of the first prompt, once for every further line that it reads.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.inference.placement import choose_placement, create_generator
from nodes.model_manifest import read_manifest, read_vocabulary

# Measured best for unequal prompts: a batch is decoded step by step up to its longest prompt.
_NEAR = 32


def batches(prompts: list[dict[str, Any]], *, replicas: int, most: int) -> list[list[dict[str, Any]]]:
    """Prompts of like length together; at most ``most``, an even share for each replica where all are alike."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt["ids"]))
    rows = max(1, min(most, -(-len(prompts) // replicas)))
    found: list[list[dict[str, Any]]] = []
    for prompt in ordered:
        if found and len(found[-1]) < rows and len(found[-1][0]["ids"]) - len(prompt["ids"]) <= _NEAR:
            found[-1].append(prompt)
        else:
            found.append([prompt])
    return found


def main() -> None:
    question = json.loads(sys.stdin.readline())
    directory = Path(question["directory"])
    manifest, vocabulary = read_manifest(directory), read_vocabulary(directory)
    placement = choose_placement()
    generator = create_generator(directory, placement=placement)

    def generate(batch: list[dict[str, Any]], callback: Any = None) -> int:
        results = generator.generate_batch(
            [[vocabulary[token] for token in prompt["ids"]] for prompt in batch],
            max_length=batch[0]["limit"],
            include_prompt_in_result=False,
            end_token=list(manifest.end_token_ids),
            sampling_topk=1,
            **({"callback": callback} if callback else {}),
        )
        return sum(len(result.sequences_ids[0]) for result in results)

    prompts = question["prompts"]
    warm = [{**prompts[0], "limit": 4}]
    with ThreadPoolExecutor(placement.replicas) as threads:
        list(threads.map(generate, [warm] * placement.replicas))
        if sys.argv[1:] == ["--first"]:
            for _ in sys.stdin:
                print(_first_token(generate, prompts[0]), flush=True)
            return
        started = time.perf_counter()
        tokens = sum(threads.map(generate, batches(prompts, replicas=placement.replicas, most=placement.batch_rows)))
        seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_second": tokens / seconds}))


def _first_token(generate: Callable[..., int], prompt: dict[str, Any]) -> float:
    arrivals: list[float] = []
    started = time.perf_counter()
    generate([{**prompt, "limit": 2}], lambda step: arrivals.append(time.perf_counter() - started) or False)
    return arrivals[0]


if __name__ == "__main__":
    main()
