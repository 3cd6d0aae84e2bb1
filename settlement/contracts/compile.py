"""`python -m settlement.contracts.compile [--check]`: Solidity to committed artifacts and typed bindings.
Guarantees the same bytes from the same sources, with the compiler and library pinned by package-lock.json;
`--check` writes nothing and exits 1 naming each file that differs. Needed to change the contracts, never to
run the node.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eth_utils.crypto import keccak

from settlement.chain.toolchain import ToolchainError, node_command, run_npm
from settlement.contracts.generate import generate_bindings

CONTRACTS_DIR = Path(__file__).resolve().parent
ROOT = CONTRACTS_DIR.parent.parent
SOURCES = CONTRACTS_DIR / "src"
ABI_DIR = CONTRACTS_DIR / "abi"
BINDINGS_DIR = ROOT / "settlement" / "chain" / "bindings"
TEST_ARTIFACTS = ROOT / "tests" / "chain" / "artifacts"
PUBLISHED = (
    "HostEarnings",
    "JobMarketplace",
    "MockVerifier",
    "ModelRegistry",
    "NodeRegistry",
    "ProofSystem",
    "TestUSDC",
)
# Of contracts that are not ours: bindings only.
INTERFACES = ("MissionJobMarketplace", "ModelJobMarketplace", "ModelRateLimits")


class CompileError(Exception):
    """The sources do not compile, or the bindings cannot be generated from them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m settlement.contracts.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is committed; write nothing")
    options = parser.parse_args(arguments)
    try:
        outputs = compiled_files()
    except (CompileError, ToolchainError) as problem:
        _say(f"compile: {problem}")
        return 1
    differing = [path for path, text in outputs.items() if not _holds(path, text)]
    stale = sorted(_generated_files() - outputs.keys())
    if options.check:
        for path in differing + stale:
            _say(f"differs from the sources: {path.relative_to(ROOT)}")
        return 1 if differing or stale else 0
    for path in differing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(outputs[path], encoding="utf-8")
    for path in stale:
        path.unlink()
    _say(f"compile: {len(outputs)} files, {len(differing)} changed, {len(stale)} removed")
    return 0


def compiled_files() -> dict[Path, str]:
    """All generated files with their contents; raises CompileError or ToolchainError."""
    published: dict[str, Mapping[str, Any]] = {}
    interfaces: dict[str, Mapping[str, Any]] = {}
    files: dict[Path, str] = {}
    for source, contracts in _compile(_node_modules()).items():
        for name, output in contracts.items():
            if name in INTERFACES:
                interfaces[name] = output
            elif name in PUBLISHED:
                published[name] = output
                files[ABI_DIR / f"{name}.json"] = _artifact_text(name, output)
            elif source.startswith("test/"):
                files[TEST_ARTIFACTS / f"{name}.json"] = _artifact_text(name, output)
    missing = {*PUBLISHED, *INTERFACES} - published.keys() - interfaces.keys()
    if missing:
        raise CompileError(f"no such contract in {SOURCES}: {', '.join(sorted(missing))}")
    abis = {name: published[name]["abi"] for name in PUBLISHED}
    foreign = {name: interfaces[name]["abi"] for name in INTERFACES}
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.sol"))]
    for module, text in generate_bindings(abis, interfaces=foreign, sources=sources).items():
        files[BINDINGS_DIR / f"{module}.py"] = _formatted(text)
    return files


def _node_modules() -> Path:
    """The pinned node_modules, in a cache keyed by the lock file so that a checkout stays as it is."""
    lock = (CONTRACTS_DIR / "package-lock.json").read_bytes()
    folder = ROOT / "var" / "tools" / f"contracts-{hashlib.sha256(lock).hexdigest()[:16]}"
    done = folder / "installed"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CONTRACTS_DIR / name, folder / name)
        run_npm(["ci"], cwd=folder, progress=_say)
        done.touch()
    return folder / "node_modules"


def _compile(modules: Path) -> Mapping[str, Mapping[str, Any]]:
    command = [*node_command(progress=_say), str(CONTRACTS_DIR / "compile.js"), str(modules), str(SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own argv
    if done.returncode != 0:
        raise CompileError(f"solc refused the sources:\n{done.stderr}")
    contracts: Mapping[str, Mapping[str, Any]] = json.loads(done.stdout)["contracts"]
    return contracts


def _artifact_text(name: str, output: Mapping[str, Any]) -> str:
    evm = output["evm"]
    runtime = bytes.fromhex(evm["deployedBytecode"]["object"])
    references = evm["deployedBytecode"].get("immutableReferences", {})
    immutables = sorted([spot["start"], spot["length"]] for spots in references.values() for spot in spots)
    artifact = {
        "contractName": name,
        "abi": output["abi"],
        "bytecode": f"0x{evm['bytecode']['object']}",
        "deployedBytecodeSize": len(runtime),
        "deployedBytecodeHash": f"0x{keccak(runtime).hex()}",
        "immutables": immutables,
    }
    return json.dumps(artifact, indent=1) + "\n"


def _formatted(text: str) -> str:
    """The module as the project's formatter leaves it."""
    # First party by decree: whether the package is there yet must not decide how its imports are sorted.
    sort = [
        "check",
        "--fix",
        "--quiet",
        "--select",
        "I,F401",
        "--config",
        'lint.isort.known-first-party=["settlement"]',
    ]
    for arguments in (sort, ["format"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *arguments,
            "--stdin-filename",
            str(BINDINGS_DIR / "x.py"),
            "-",
        ]
        done = subprocess.run(  # noqa: S603 - no shell, our own argv
            command, input=text, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode != 0:
            raise CompileError(f"ruff (requirements-dev.txt) failed on a generated module: {done.stderr.strip()}")
        text = done.stdout
    return text


def _generated_files() -> set[Path]:
    return {*ABI_DIR.glob("*.json"), *TEST_ARTIFACTS.glob("*.json"), *BINDINGS_DIR.glob("*.py")}


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
