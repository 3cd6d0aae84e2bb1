"""cuBLAS, which CTranslate2 opens by name when a model is loaded on a GPU.

Guarantees: where only pip installed it (``requirements-cuda.txt``), where no loader looks, it is found
all the same; a library of the system comes first. Says nothing where there is none: CTranslate2 does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

CUBLAS = "libcublas.so.12"
# The second needs the first.
_FILES = ("libcublasLt.so.12", CUBLAS)


def open_libraries() -> None:
    """Make cuBLAS known to this process by its name, if that is possible."""
    if _is_known():
        return
    for folder in _folders():
        files = [folder / name for name in _FILES]
        if all(file.is_file() for file in files):
            for file in files:
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
            logger.info("cuBLAS is taken from %s", folder)
            return


def _is_known() -> bool:
    try:
        ctypes.CDLL(CUBLAS)
    except OSError:
        return False
    return True


def _folders() -> Iterator[Path]:
    """Where NVIDIA's package puts its libraries, in every place that Python imports from."""
    found = importlib.util.find_spec("nvidia")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        yield Path(place) / "cublas" / "lib"
