"""What a burst needed goes back to the system when the engine rests."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import subprocess
import sys

import pytest

from jobs.inference import memory
from jobs.inference import scheduler as schedulers
from jobs.inference.scripted import Script
from tests.jobs.test_scheduler import Gated, collect, scheduler, until
from tests.plugins.model import request

HOLES = """
import ctypes, psutil
from jobs.inference.memory import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 1024
blocks = [libc.malloc(size) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks[:-1]:
    libc.free(block)
before = psutil.Process().memory_info().rss
give_back()
print((before - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps holes so")
def test_freed_blocks_below_one_in_use_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100


def test_a_system_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name))
    memory.give_back()
    assert asked == [None]


async def test_it_is_given_back_once_after_work_and_never_while_something_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(schedulers, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(schedulers, "_REST_SECONDS", 0.03)
    generator = Gated(Script(tokens=3, replicas=1, batch_rows=1))
    monkeypatch.setattr(schedulers, "give_back", lambda: given.append(generator.running == 0))
    async with scheduler(generator, queue_size=1) as engine:
        for number in (1, 2):
            generator.gate.clear()
            task = asyncio.create_task(collect(engine, request(request_id=str(number))))
            await until(lambda: generator.running == 1)
            await asyncio.sleep(0.2)
            assert len(given) == number - 1
            generator.gate.set()
            await task
            await until(lambda number=number: len(given) == number)  # type: ignore[misc]
        await asyncio.sleep(0.2)
        assert given == [True, True]
