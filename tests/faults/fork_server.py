"""A process with Django loaded that forks: each piece of work runs in a process of its own, started in milliseconds.

``python -m tests.faults.fork_server`` reads one request a line (JSON) and answers each when its process has ended:
with what it returned, with its exception's text, or with the signal that killed it. Only a rehearsal is work of the
server itself: what Python, Django and web3 build at first use is then there in every process that it forks.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import django

from settlement.chain import local

ROOT = Path(__file__).resolve().parents[2]


class WorkFailed(AssertionError):
    """The work raised; its traceback is the message."""


class ForkServer:
    """The caller's side. ``start`` and ``result`` apart let several servers work at the same time."""

    def __init__(self, *, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "server.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FABSTIR_", "HOST_"))}
        kept |= {"DJANGO_SETTINGS_MODULE": "fabstir_site.settings", "FABSTIR_DATA_DIR": str(folder), **environ}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fork_server"],
                cwd=ROOT,
                env=kept,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=local.die_with_parent,
            )

    def start(self, verb: str, **arguments: Any) -> None:
        self._request(verb, arguments, rehearsal=False)

    def rehearse(self, verb: str, **arguments: Any) -> None:
        """Let the server do the work itself. It must leave no thread and no connection behind."""
        self._request(verb, arguments, rehearsal=True)
        self.result()

    def _request(self, verb: str, arguments: dict[str, Any], *, rehearsal: bool) -> None:
        assert self._process.stdin is not None
        said = {"verb": verb, "arguments": arguments, "rehearsal": rehearsal}
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()

    def result(self) -> tuple[int, Any]:
        """The signal that ended the process (0 if none did) and what the work returned. Raises ``WorkFailed``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkFailed(f"the fork server is gone:\n{self.log_tail()}")
        answer = json.loads(line)
        if answer["error"]:
            raise WorkFailed(f"{answer['error']}\n{self.log_tail()}")
        return answer["signal"], answer["result"]

    def run(self, verb: str, **arguments: Any) -> tuple[int, Any]:
        self.start(verb, **arguments)
        return self.result()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """For work that is not killed."""
        killed_by, result = self.run(verb, **arguments)
        assert killed_by == 0, f"{verb} was killed by signal {killed_by}\n{self.log_tail()}"
        return result

    def log_tail(self, *, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is logged goes to the server's log, not between the answers
    django.setup()
    # Its models can be imported only now.
    work = importlib.import_module("tests.faults.work")
    # What a worker imports before its first task.
    work.app.loader.import_default_modules()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        verb, arguments = work.VERBS[request["verb"]], request["arguments"]
        if request["rehearsal"]:
            answer = {"signal": 0, **_answer(verb, arguments)}
            gc.freeze()
        else:
            answer = _in_a_fork(verb, arguments)
        answers.write(json.dumps({"result": None, "error": None} | answer) + "\n")
        answers.flush()


def _in_a_fork(verb: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        local.die_with_parent()
        gc.disable()  # it does not live long enough
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(_answer(verb, arguments)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"signal": killed_by} | (json.loads(said) if said else {})


def _answer(verb: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": verb(**arguments)}
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    _serve()
