"""Safetensors are converted without running anybody's code, and pickles are not read.

The conversions themselves need ``requirements-models.txt``: name an interpreter that has it in
``MODELS_TEST_PYTHON`` to run them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from nodes.converted_model import UnsupportedModel
from nodes.huggingface_import import ExtraMissing
from nodes.model_manifest import CorruptModel
from nodes.model_store import ModelStore, Origin
from tests.nodes.huggingface_files import write_huggingface

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = os.environ.get("MODELS_TEST_PYTHON", "")
needs_the_extra = pytest.mark.skipif(not INTERPRETER, reason="MODELS_TEST_PYTHON names no interpreter")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "source", kind="llama")
    return tmp_path / "source"


def add(store: ModelStore, source: Path, **options: Any) -> Any:
    return store.add(source, model_id="small", origin=Origin(**options))


def test_without_the_extra_one_line_says_what_to_install(store: ModelStore, source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o700)
    with pytest.raises(ExtraMissing, match=r"pip install -r requirements-models\.txt.*--python") as caught:
        add(store, source, interpreter=bare)
    assert "\n" not in str(caught.value)
    assert [path.name for path in store.directory.iterdir()] == [".lock"]


def test_an_interpreter_that_is_not_there_is_named(store: ModelStore, source: Path) -> None:
    with pytest.raises(ExtraMissing, match="/nowhere/python"):
        add(store, source, interpreter=Path("/nowhere/python"))


def test_pickled_weights_are_not_read(store: ModelStore, source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="Pickled weights"):
        add(store, source)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(store: ModelStore, source: Path, name: str) -> None:
    path = source / name
    document = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    path.write_text(json.dumps(document))
    with pytest.raises(UnsupportedModel, match=r"auto_map.*never run"):
        add(store, source)


@pytest.mark.parametrize("name", ["tokenizer.json"])
def test_an_incomplete_directory_is_refused(store: ModelStore, source: Path, name: str) -> None:
    (source / name).unlink()
    with pytest.raises(CorruptModel, match=f"{name} is missing"):
        add(store, source)


def test_code_of_a_model_is_never_trusted() -> None:
    """``trust_remote_code`` is written out as False wherever it occurs, and nothing can pass it on."""
    for path in [*ROOT.glob("nodes/**/*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("fabstir_site/**/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            assert not (isinstance(node, ast.arg) and node.arg == "trust_remote_code"), path
            assert not (isinstance(node, ast.Constant) and node.value == "trust_remote_code"), path
    program = (ROOT / "nodes" / "transformers_conversion.py").read_text()
    loads = re.findall(r"from_pretrained\((?:[^()]|\([^()]*\))*\)|super\(\).__init__\([^)]*\)[^)]*\)", program)
    assert len(loads) == 4
    assert all("trust_remote_code=False" in load for load in loads)


@needs_the_extra
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", ["int8", "float32"])
def test_safetensors_agree_with_transformers(store: ModelStore, tmp_path: Path, kind: str, quantization: str) -> None:
    write_huggingface(tmp_path / "source", kind=kind)
    manifest = add(store, tmp_path / "source", quantization=quantization, interpreter=Path(INTERPRETER))
    assert (manifest.architecture, manifest.end_token_ids, manifest.bos_token_id) == (kind, (0, 2), 1)
    assert "against transformers" in manifest.check.method
    assert manifest.check.agreement >= (0.8 if quantization == "int8" else 1.0)
    assert store.check("small") == manifest.check


@needs_the_extra
def test_llama3_scaling_survives_the_converter(store: ModelStore, tmp_path: Path) -> None:
    write_huggingface(tmp_path / "source", kind="llama", scaling=LLAMA3)
    manifest = add(store, tmp_path / "source", quantization="float32", interpreter=Path(INTERPRETER))
    assert (manifest.check.agreement, manifest.check.perplexity_ratio) == (1.0, 1.0)
