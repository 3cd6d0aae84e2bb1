"""cuBLAS of pip's package, with small libraries of its names: the loader knows them afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import ctypes
from jobs.inference.cuda_libraries import open_libraries
open_libraries()
print(ctypes.CDLL("libcublas.so.12").made_for_this_test())
"""


def library(folder: Path, name: str, *, answer: int) -> None:
    """A shared library whose own name is ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.c"
    source.write_text(f"int made_for_this_test(void) {{ return {answer}; }}\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)], check=True
    )


def asked(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(autouse=True)
def no_cublas_of_the_system() -> None:
    if asked().returncode == 0:
        pytest.skip("this machine has cuBLAS")


@pytest.mark.skipif(sys.platform != "linux", reason="the names are those of Linux")
def test_the_package_is_found_and_a_library_of_the_system_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "site" / "nvidia" / "cublas" / "lib"
    library(package, "libcublasLt.so.12", answer=0)
    library(package, "libcublas.so.12", answer=12)
    found = asked(PYTHONPATH=str(tmp_path / "site"))
    assert found.stdout == "12\n", found.stderr

    library(tmp_path / "system", "libcublas.so.12", answer=7)
    preferred = asked(PYTHONPATH=str(tmp_path / "site"), LD_LIBRARY_PATH=str(tmp_path / "system"))
    assert preferred.stdout == "7\n", preferred.stderr


def test_a_package_without_both_libraries_is_left_alone(tmp_path: Path) -> None:
    library(tmp_path / "nvidia" / "cublas" / "lib", "libcublas.so.12", answer=12)
    refused = asked(PYTHONPATH=str(tmp_path))
    assert refused.returncode == 1
    assert "libcublas.so.12: cannot open shared object file" in refused.stderr
