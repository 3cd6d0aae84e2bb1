"""Where and how a model computes.

Guarantees: what is asked for and not there is refused with a line that says what to do; without a
wish, every GPU is used if there is one, else every core.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import ctranslate2

from jobs.inference.cuda_libraries import CUBLAS, open_libraries
from jobs.inference.generator import ModelLoadError

# Measured on 2 cores (SmolLM2-135M, int8): 8 rows make 5 times the tokens of 1; more rows gain little and
# make every other stream of the batch slower.
CPU_BATCH_ROWS = 8
# Measured on an H100 (the same model): a step takes 10 ms with 1 row and with 128, so more rows cost nothing; what
# bounds them is the memory of their contexts with larger models. Two replicas hinder each other: half of a batch on
# each makes 0.6 of the tokens that the whole makes on one, four make a third.
CUDA_BATCH_ROWS = 64
CUDA_REPLICAS = 1
_COMPUTING_NICENESS = 5
T = TypeVar("T")

_CUDA_TYPES = ("int8_float16", "int8_bfloat16", "float16", "bfloat16", "int8", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """``replicas`` batches of at most ``batch_rows`` run at the same time, each with ``threads`` CPU

    threads; on CUDA the same number of them on each of ``device_indexes``.
    """

    device: Literal["cpu", "cuda"]
    device_indexes: tuple[int, ...]
    compute_type: str
    replicas: int
    threads: int
    batch_rows: int


def choose_placement(
    *,
    device: str = "auto",
    compute_type: str | None = None,
    device_indexes: Sequence[int] | None = None,
    replicas: int | None = None,
    threads: int | None = None,
    batch_rows: int | None = None,
) -> Placement:
    """CUDA with every GPU if there is one, else one single-threaded CPU replica per core.

    ``replicas`` are counted per GPU on CUDA. Raises ``ModelLoadError`` if what is demanded is absent.
    """
    gpus = ctranslate2.get_cuda_device_count()
    if device not in {"auto", "cpu", "cuda"}:
        raise ModelLoadError(f"The device {device!r} is unknown. Set it to auto, cpu or cuda.")
    if device == "cuda" and gpus == 0:
        raise ModelLoadError("There is no usable CUDA device. Set the device to auto or cpu.")
    if gpus == 0 or device == "cpu":
        cores = len(os.sched_getaffinity(0))
        each = threads or 1
        return Placement(
            device="cpu",
            device_indexes=(0,),
            compute_type=compute_type or "int8",
            replicas=replicas or max(1, cores // each),
            threads=each,
            batch_rows=batch_rows or CPU_BATCH_ROWS,
        )
    indexes = tuple(device_indexes) if device_indexes else tuple(range(gpus))
    absent = [index for index in indexes if not 0 <= index < gpus]
    if absent:
        raise ModelLoadError(f"There is no GPU {absent[0]}: this machine has {gpus}. Correct FABSTIR_ENGINE_GPUS.")
    return Placement(
        device="cuda",
        device_indexes=indexes,
        compute_type=compute_type or _best_cuda_type(indexes),
        replicas=(replicas or CUDA_REPLICAS) * len(indexes),
        threads=threads or 1,
        batch_rows=batch_rows or CUDA_BATCH_ROWS,
    )


def create_generator(directory: Path, *, placement: Placement) -> ctranslate2.Generator:
    """A bare CTranslate2 generator with the options that the engine uses; checks nothing."""
    if placement.device == "cuda":
        open_libraries()
    return ctranslate2.Generator(
        str(directory),
        device=placement.device,
        device_index=list(placement.device_indexes),
        compute_type=placement.compute_type,
        inter_threads=placement.replicas // len(placement.device_indexes),
        intra_threads=placement.threads,
    )


def giving_way(create: Callable[[], T], *, placement: Placement) -> T:
    """What ``create`` returns, its computing threads at a lower priority than the rest of the node.

    They take every core they get, and what they would delay is short: admitting, counting and sending. Only
    on Linux, where a thread has a priority of its own, which the threads that it starts inherit.
    """
    if placement.device != "cpu" or sys.platform != "linux":
        return create()

    def lowered() -> T:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _COMPUTING_NICENESS)
        return create()

    with ThreadPoolExecutor(1) as creator:
        return creator.submit(lowered).result()


def advice(problem: str, *, placement: Placement) -> str:
    """What the operator can do about a failure to load."""
    if "out of memory" in problem.lower():
        return (
            "Free memory of the GPU, unload other models, choose FABSTIR_COMPUTE_TYPE=int8, fewer"
            " FABSTIR_ENGINE_REPLICAS, or a smaller model."
        )
    if "compute type" in problem.lower():
        types = sorted(ctranslate2.get_supported_compute_types(placement.device))
        return f"Set FABSTIR_COMPUTE_TYPE to one of {', '.join(types)}."
    if CUBLAS in problem:
        return (
            "Install the CUDA 12 toolkit, or `.venv/bin/pip install -r requirements-cuda.txt`, and start again;"
            " or set FABSTIR_DEVICE=cpu."
        )
    if "cuda" in problem.lower() or "cublas" in problem.lower() or "cudnn" in problem.lower():
        return "Check the NVIDIA driver and the CUDA 12 libraries, or set FABSTIR_DEVICE=cpu."
    return "Run `manage.py models verify`, and add the model again if it is damaged."


def _best_cuda_type(indexes: Sequence[int]) -> str:
    """The fastest type that all the GPUs have."""
    supported = set.intersection(*(set(ctranslate2.get_supported_compute_types("cuda", index)) for index in indexes))
    return next((name for name in _CUDA_TYPES if name in supported), "default")
