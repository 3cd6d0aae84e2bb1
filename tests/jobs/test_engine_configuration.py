"""What the engine process refuses to start with, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import pytest

from jobs.inference.configuration import ConfigurationError, read_configuration
from jobs.inference.generator import ModelLoadError
from jobs.inference.placement import advice, choose_placement
from jobs.inference.server import SocketInUse, bind_socket
from nodes.model_manifest import MANIFEST_FILE, WEIGHTS_FILE
from tests.plugins.model import EngineProcess

SCRIPTED = {"id": "scripted", "scripted": {}}


def written(path: Path, document: Any) -> Path:
    target = path / "engine.json"
    target.write_text(json.dumps(document), encoding="utf-8")
    return target


def test_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, {"socket": "/tmp/x.sock", "models": [{"id": "m", "path": "/models/m"}]})
    configuration = read_configuration(path)
    assert (configuration.device, configuration.compute_type, configuration.queue_size) == ("auto", None, 64)
    assert configuration.models[0].path == Path("/models/m")


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"models": [SCRIPTED]}, "socket"),
        ({"socket": "/tmp/x", "models": []}, "at least one model"),
        ({"socket": "/tmp/x", "models": [SCRIPTED, SCRIPTED]}, "each id once"),
        ({"socket": "/tmp/x", "models": [{"id": "m"}]}, "path"),
        ({"socket": "/tmp/x", "models": [SCRIPTED], "quue_size": 1}, "quue_size"),
        ({"socket": "/tmp/x", "models": [{"id": "m", "scripted": {"tokns": 1}}]}, "tokns"),
        ({"socket": "/tmp/x", "models": [SCRIPTED], "replicas": 0}, "replicas"),
        ({"socket": "/tmp/x", "models": [SCRIPTED], "memory_mb": "much"}, "much"),
        ([], "unknown|list"),
    ],
)
def test_an_unusable_configuration_is_named(tmp_path: Path, document: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        read_configuration(written(tmp_path, document))


def test_a_bad_configuration_has_its_own_exit_status(engine_process: EngineProcess) -> None:
    engine_process.spawn()
    assert engine_process.wait() == 2
    assert "at least one model" in engine_process.output


def test_a_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(SocketInUse, match="107"):
        bind_socket(tmp_path / ("x" * 120))


def test_a_missing_gpu_is_named() -> None:
    if choose_placement().device == "cuda":
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelLoadError, match="no usable CUDA device"):
        choose_placement(device="cuda")


def test_several_gpus_and_their_best_type_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CTranslate2's answers for three GPUs; what it does with the choice needs a GPU."""
    types = {0: {"int8", "int8_float16", "float16"}, 1: {"float16", "float32"}, 2: {"int8_float16", "float32"}}
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 3)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device, index=0: types[index])
    everything = choose_placement()
    assert (everything.device, everything.device_indexes, everything.replicas) == ("cuda", (0, 1, 2), 3)
    assert everything.compute_type == "default"  # they have none in common
    some = choose_placement(device_indexes=[0, 2], replicas=2, batch_rows=16)
    assert (some.device_indexes, some.compute_type, some.replicas, some.batch_rows) == ((0, 2), "int8_float16", 4, 16)
    assert choose_placement(device_indexes=[0], compute_type="bfloat16").compute_type == "bfloat16"
    assert choose_placement(device="cpu").device == "cpu"
    with pytest.raises(ModelLoadError, match=r"no GPU 3.*FABSTIR_ENGINE_GPUS"):
        choose_placement(device_indexes=[1, 3])


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("CUDA failed with error out of memory", "FABSTIR_COMPUTE_TYPE=int8"),
        ("Requested int8_float16 compute type, but the target device does not support it", "int8_float32"),
        ("CUDA driver version is insufficient for CUDA runtime version", "NVIDIA driver"),
        ("Library libcublas.so.12 is not found or cannot be loaded", "requirements-cuda.txt"),
        ("File model.bin is incomplete", "models verify"),
    ],
)
def test_a_failure_to_load_says_what_to_do(problem: str, told: str) -> None:
    assert told in advice(problem, placement=choose_placement(device="cpu"))


def test_cpu_has_one_single_threaded_replica_per_core() -> None:
    placement = choose_placement(device="cpu")
    assert placement.replicas >= 1
    assert (placement.threads, placement.compute_type, placement.batch_rows) == (1, "int8", 8)
    assert choose_placement(device="cpu", replicas=3, threads=4).replicas == 3


def refused(engine: EngineProcess, model: Path) -> str:
    engine.spawn({"id": "damaged", "path": str(model)})
    assert engine.wait() == 3, engine.output
    assert "Traceback" not in engine.output
    assert not engine.socket.exists()
    return engine.output


def test_one_overwritten_byte_is_refused(engine_process: EngineProcess, model_copy: Path) -> None:
    with (model_copy / WEIGHTS_FILE).open("r+b") as weights:
        weights.seek(60_000_000)
        byte = weights.read(1)
        weights.seek(60_000_000)
        weights.write(bytes((byte[0] ^ 1,)))
    output = refused(engine_process, model_copy)
    assert "model.bin has other content than recorded" in output
    assert "Remove it and add it again" in output


def test_truncated_weights_are_refused(engine_process: EngineProcess, model_copy: Path) -> None:
    with (model_copy / WEIGHTS_FILE).open("r+b") as weights:
        weights.truncate(1_000_000)
    assert "model.bin has 1000000 bytes instead of" in refused(engine_process, model_copy)


def test_a_missing_file_is_refused(engine_process: EngineProcess, model_copy: Path) -> None:
    (model_copy / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(engine_process, model_copy)


def test_an_unlisted_file_is_refused(engine_process: EngineProcess, model_copy: Path) -> None:
    (model_copy / "extra.bin").write_bytes(b"x")
    assert "extra.bin is not listed" in refused(engine_process, model_copy)


def test_an_unreadable_manifest_is_refused(engine_process: EngineProcess, model_copy: Path) -> None:
    (model_copy / MANIFEST_FILE).write_text("{")
    assert "is unreadable" in refused(engine_process, model_copy)


def test_a_directory_without_a_model_is_refused(engine_process: EngineProcess, tmp_path: Path) -> None:
    assert "holds no model" in refused(engine_process, tmp_path)


def test_an_unknown_compute_type_is_refused(engine_process: EngineProcess, default_model_entry: dict[str, Any]) -> None:
    engine_process.spawn(default_model_entry, compute_type="int3")
    assert engine_process.wait() == 3
    assert "int3" in engine_process.output
