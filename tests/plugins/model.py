"""Fixtures for tests with a real model and a real engine process. Loaded with ``-p tests.plugins.model``.

The default model is fetched and converted once into ``FABSTIR_MODELS_CACHE`` (or ``var/models`` of
the checkout) and shared by all tests; tests that damage a model work on a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.inference.client import EngineClient
from jobs.inference.engine import ChatMessage, GenerationRequest, TokenChunk
from nodes.model_manifest import ModelManifest
from nodes.model_store import DEFAULT_MODEL, ModelStore

REPOSITORY = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 60.0


class EngineProcess:
    """The engine process as a child, with its own socket; can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "engine.sock"
        self.log = directory / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def spawn(self, *models: dict[str, Any], **options: Any) -> None:
        """Start without waiting."""
        configuration = {"socket": str(self.socket), "models": list(models), "device": "cpu", **options}
        path = self.directory / "engine.json"
        path.write_text(json.dumps(configuration), encoding="utf-8")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.inference.process", "--config", str(path)],
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start(self, *models: dict[str, Any], **options: Any) -> EngineClient:
        """Start, wait until it listens, and return a client."""
        self.spawn(*models, **options)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while "engine ready on" not in self.output:
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the engine did not start:\n{self.output}")
            time.sleep(0.01)
        return EngineClient(self.socket)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        assert self._process is not None
        return self._process.wait(_PATIENCE_SECONDS)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def request(text: str = "Hello", **fields: Any) -> GenerationRequest:
    """A request of one user message; fields override the defaults."""
    defaults: dict[str, Any] = {
        "request_id": "request-1",
        "model": "scripted",
        "messages": (ChatMessage(role="user", content=text),),
        "max_tokens": 16,
        "temperature": 0.0,
    }
    return GenerationRequest(**(defaults | fields))


def ids_of(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks: list[TokenChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    return ModelStore(Path(os.environ.get("FABSTIR_MODELS_CACHE") or REPOSITORY / "var" / "models"))


@pytest.fixture(scope="session")
def default_model(model_store: ModelStore) -> ModelManifest:
    return model_store.ensure_packaged()


@pytest.fixture(scope="session")
def default_model_path(model_store: ModelStore, default_model: ModelManifest) -> Path:
    return model_store.path(default_model.id)


@pytest.fixture(scope="session")
def default_model_entry(default_model_path: Path) -> dict[str, Any]:
    """The default model's entry in an engine configuration."""
    return {"id": DEFAULT_MODEL.id, "path": str(default_model_path), "default": True}


@pytest.fixture
def model_copy(default_model_path: Path, tmp_path: Path) -> Path:
    """A copy of the default model that a test may damage."""
    return shutil.copytree(default_model_path, tmp_path / "model")


@pytest.fixture
def engine_process() -> Iterator[EngineProcess]:
    # A directory of its own: a Unix socket's path is limited to 107 bytes, pytest's can be longer.
    engine = EngineProcess(Path(tempfile.mkdtemp(prefix="fabstir-engine-")))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def real_engine_process(default_model_entry: dict[str, Any]) -> Iterator[EngineProcess]:
    """One engine with the default model for all tests that only talk to it."""
    engine = EngineProcess(Path(tempfile.mkdtemp(prefix="fabstir-engine-")))
    engine.start(default_model_entry)
    yield engine
    engine.close()
