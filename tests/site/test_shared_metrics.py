"""Figures of several processes: shared while they live, and without traces of those that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fabstir_site import shared_metrics

ROOT = Path(__file__).resolve().parents[2]
# Begins a request of three tokens, says so and goes on when it is told to.
PROCESS = """
import os, sys
from pathlib import Path
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from fabstir_site import shared_metrics
from jobs.inference.engine import TokenChunk
from jobs.observation import ObservedRequest
from jobs.serving_metrics import ServingMetrics
shared_metrics.join(Path(sys.argv[1]))
metrics = ServingMetrics()
metrics.sockets(2)
watch = metrics.request(
    ObservedRequest(id="1", model="m", asked="m", path="http", max_tokens=9, temperature=0.0))
watch.chunk(TokenChunk(sequence=0, token_ids=(1, 2), text="ab", prompt_tokens=5, queued_seconds=0.2))
watch.chunk(TokenChunk(sequence=1, token_ids=(), untold=1, text="c", prompt_tokens=5))
print("begun", flush=True)
sys.stdin.readline()
watch.ended("length", prompt_tokens=5, completion_tokens=3, error_code="")
print("ended", flush=True)
sys.stdin.readline()
"""


class Processes:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(self.directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"

    def shown(self, name: str) -> float:
        text = shared_metrics.exposition(self.directory).decode()
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"fabstir_{name}"
        ]
        return sum(found)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path / "metrics")
    yield started
    for process in started.running:
        process.kill()
        process.communicate()


def test_the_figures_are_those_of_all_processes(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    assert processes.shown("num_requests_running") == 2
    assert processes.shown("num_requests_waiting") == 0
    assert processes.shown("ws_connections") == 4
    processes.finish(first)
    assert processes.shown("num_requests_running") == 1
    assert processes.shown("generation_tokens_total") == 3
    processes.finish(second)
    assert processes.shown("generation_tokens_total") == 6
    assert processes.shown("prompt_tokens_total") == 10
    assert processes.shown("request_success_total") == 2
    assert processes.shown("request_queue_time_seconds_sum") == pytest.approx(0.4)
    for histogram in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        assert processes.shown(f"{histogram}_seconds_count") == 2


def test_a_killed_process_leaves_its_counters_and_takes_its_gauges(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    processes.finish(first)
    os.kill(first.pid, signal.SIGKILL)
    os.kill(second.pid, signal.SIGKILL)
    first.wait()
    second.wait()
    assert processes.shown("num_requests_running") == 0
    assert processes.shown("ws_connections") == 0
    assert processes.shown("generation_tokens_total") == 3


def test_counters_go_on_while_any_process_lives_and_begin_anew_after_the_last(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    processes.finish(first)
    first.kill()
    first.wait()
    third = processes.start()
    processes.finish(third)
    assert processes.shown("generation_tokens_total") == 6
    for process in (second, third):
        process.kill()
        process.wait()
    processes.start()
    assert processes.shown("generation_tokens_total") == 0
    assert processes.shown("num_requests_running") == 1
