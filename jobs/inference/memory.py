"""Memory that this process has freed and the system has not got back."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return free pages to the system, some milliseconds of work; without glibc there is nothing to do.

    Batches allocate and free blocks of growing size, of which glibc keeps the holes: a burst of long prompts
    would hold hundreds of MiB for as long as the process lives.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
