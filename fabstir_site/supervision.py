"""The process tree under supervisord: its configuration, and starting, watching and stopping it.

Guarantees that every child ends when its parent does, that a child that dies is started again, and
that one which keeps dying is reported. Knows programs and addresses, not what they do.
"""

from __future__ import annotations

import configparser
import getpass
import shutil
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from fabstir_site.environment import CHECKOUT, socket_path
from settlement.chain.local import die_with_parent

_POLL_SECONDS = 0.05


class SupervisionError(Exception):
    """The process tree cannot be started or a part of it keeps dying. Names the part and its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A child process. ``priority`` orders the stop: higher numbers stop first."""

    name: str
    command: tuple[str, ...]
    priority: int
    stop_seconds: int = 20
    autostart: bool = False


class Supervisor:
    """supervisord with a private socket, as a child of this process."""

    def __init__(self, programs: Iterable[Program], *, run_dir: Path, log_dir: Path) -> None:
        self._programs = tuple(programs)
        self._run_dir = run_dir
        self._log_dir = log_dir
        self._socket = socket_path(run_dir / "supervisor.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start supervisord and the programs with ``autostart``."""
        for directory in (self._run_dir, self._log_dir, self._socket.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        path = self._run_dir / "supervisord.conf"
        with path.open("w") as file:
            self._configuration().write(file)
        # A session of its own: Ctrl-C reaches the owner alone, who then stops the tree in order.
        self._process = subprocess.Popen(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(path)],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._wait_for_socket()

    def _wait_for_socket(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise SupervisionError(f"supervisord did not start; see {self._log_dir / 'supervisord.log'}")
            try:
                self._rpc().supervisor.getState()
            except (OSError, xmlrpc.client.Error):
                time.sleep(_POLL_SECONDS)
            else:
                return
        raise SupervisionError("supervisord does not answer")

    def _rpc(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)

    def start_program(self, name: str) -> None:
        """Start one program without waiting for it; ``failures`` tells if it did not stay up."""
        try:
            self._rpc().supervisor.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            raise SupervisionError(f"{name} did not start ({fault.faultString}); see {self.log_of(name)}") from fault

    def failures(self) -> list[str]:
        """Programs that supervisord has given up on, or supervisord itself."""
        if self._process is None or self._process.poll() is not None:
            return ["supervisord"]
        states = self._rpc().supervisor.getAllProcessInfo()
        return [state["name"] for state in states if state["statename"] in ("FATAL", "UNKNOWN")]

    def has_ended(self, name: str) -> bool:
        """Whether a program has ended since the tree started, even if supervisord starts it again."""
        return bool(self._rpc().supervisor.getProcessInfo(name)["stop"])

    def states(self) -> dict[str, str]:
        """supervisord's word for each program: RUNNING, EXITED, …"""
        return {state["name"]: state["statename"] for state in self._rpc().supervisor.getAllProcessInfo()}

    def log_of(self, name: str) -> Path:
        """Where a program's output goes."""
        return self._log_dir / f"{name}.log"

    def stop(self) -> None:
        """Stop the programs, latest first, and supervisord. Does nothing if it is not running."""
        if self._process is None or self._process.poll() is not None:
            return
        rpc = self._rpc()
        for program in sorted(self._programs, key=lambda program: -program.priority):
            try:
                rpc.supervisor.stopProcess(program.name)
            except (xmlrpc.client.Fault, OSError):
                # Not running: nothing to stop.
                continue
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _configuration(self) -> configparser.RawConfigParser:
        config = configparser.RawConfigParser()
        config["supervisord"] = {
            "logfile": str(self._log_dir / "supervisord.log"),
            "logfile_maxbytes": "5MB",
            "logfile_backups": "1",
            "pidfile": str(self._run_dir / "supervisord.pid"),
            "user": getpass.getuser(),
            "childlogdir": str(self._log_dir),
            "umask": "077",
        }
        config["unix_http_server"] = {"file": str(self._socket), "chmod": "0600"}
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        for program in self._programs:
            config[f"program:{program.name}"] = self._section(program)
        return config

    def _section(self, program: Program) -> dict[str, str]:
        return {
            "command": _quoted(_ends_with_parent(program.command)),
            "directory": str(CHECKOUT),
            "autostart": str(program.autostart).lower(),
            "autorestart": "true",
            "startsecs": "1",
            "startretries": "5",
            "priority": str(program.priority),
            "stopsignal": "TERM",
            "stopwaitsecs": str(program.stop_seconds),
            "stdout_logfile": str(self.log_of(program.name)),
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": "2",
            "redirect_stderr": "true",
        }


def _ends_with_parent(command: tuple[str, ...]) -> tuple[str, ...]:
    """On Linux, have the kernel end the program when supervisord is gone, however it went."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--", *command) if setpriv else command


def _quoted(command: tuple[str, ...]) -> str:
    # supervisord splits like a shell and expands %.
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"' for part in command)
