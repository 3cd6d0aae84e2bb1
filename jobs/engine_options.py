"""What the operator may choose about the engine process, beyond the device and the queue's length.

Guarantees nothing by itself: ``jobs.inference.configuration`` and ``placement`` check the values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """None: chosen by what is there, or no limit.

    ``replicas`` batches per model (and GPU) run at the same time, with ``threads`` CPU threads each
    and at most ``batch_rows`` requests. ``gpus`` are the CUDA devices to use. ``memory_mb`` limits
    the weights that are loaded; models that are neither the default nor ``pinned`` are unloaded
    after ``idle_seconds`` without a request.
    """

    replicas: int | None = None
    threads: int | None = None
    batch_rows: int | None = None
    gpus: tuple[int, ...] | None = None
    memory_mb: int | None = None
    idle_seconds: int | None = 3600
    pinned: tuple[str, ...] = ()
