"""Gives the test session an environment of its own before Django reads it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# Named by the caller in server mode (.ci/run); everything else of the caller's environment that the
# node would read must not reach the tests.
_KEPT = {"DATABASE_URL", "REDIS_URL", "FABSTIR_TOOLS_DIR", "FABSTIR_MODELS_CACHE"}
_READ = ("FABSTIR_", "HOST_", "CONTRACT_", "RPC_URL", "CHAIN_ID", "CHECKPOINT_THRESHOLD", "API_PORT", "USDC_TOKEN")
for _name in list(os.environ):
    if _name.startswith(_READ) and _name not in _KEPT:
        del os.environ[_name]

DATA_DIR = Path(tempfile.mkdtemp(prefix="fabstir-tests-"))
atexit.register(shutil.rmtree, DATA_DIR, ignore_errors=True)
os.environ["FABSTIR_DATA_DIR"] = str(DATA_DIR)
os.environ.setdefault("FABSTIR_TOOLS_DIR", str(CHECKOUT / "var" / "tools"))
