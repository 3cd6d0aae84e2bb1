"""The moments at which a process may die: before and after every commit and every RPC.

They are not listed anywhere: a boundary is named for what is done there and for the innermost functions of the
settlement code on the stack, so a pipeline that is rebuilt brings its own boundaries with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import requests
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

ROOT = Path(__file__).resolve().parents[2]
_APPS = ("settlement", "jobs")
# Transport: the same for all, so it tells nothing about where.
_PASSED_OVER = tuple(f"settlement/chain/{name}.py" for name in ("client", "endpoints", "transport"))
_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
_UNNAMED = re.compile(r"<(genexpr|listcomp|dictcomp|setcomp|lambda)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Die at the ``occurrence``-th time (from 1) that ``label`` is reached; any label if it is empty."""

    label: str
    occurrence: int


@dataclass
class Boundaries:
    """Counts the boundaries that this process reaches, and ends it with SIGKILL at the appointed one."""

    death: Death | None = None
    seen: Counter[str] = field(default_factory=Counter)
    passed: int = 0
    paused: bool = False

    def reach(self, label: str) -> None:
        if self.paused:
            return
        self.seen[label] += 1
        self.passed += 1
        if self.death is None:
            return
        count = self.seen[label] if self.death.label else self.passed
        if self.death.label in ("", label) and count == self.death.occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def off(self) -> Iterator[None]:
        """For what the test itself asks of the chain."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def install(self) -> None:
        """Into Django's connection and into the HTTP transport of this process, for its lifetime."""
        commit, send = BaseDatabaseWrapper._commit, requests.Session.send

        def committing(wrapper: BaseDatabaseWrapper) -> Any:
            return self._around("commit", lambda: commit(wrapper))

        def sending(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> Any:
            return self._around(f"rpc {_methods(request.body)}", lambda: send(session, request, **options))

        BaseDatabaseWrapper._commit = committing
        requests.Session.send = sending
        connection.execute_wrappers.append(self._executing)

    def _executing(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        """A write outside of a transaction is a commit of its own."""
        if context["connection"].in_atomic_block or not _WRITES.match(sql):
            return execute(sql, params, many, context)
        return self._around("commit", lambda: execute(sql, params, many, context))

    def _around(self, what: str, action: Callable[[], Any]) -> Any:
        label = f"{what} in {_place()}"
        self.reach(f"before {label}")
        result = action()
        self.reach(f"after {label}")
        return result


def _methods(body: bytes | str | None) -> str:
    try:
        said = json.loads(body or b"{}")
    except ValueError:
        return "?"
    if isinstance(said, list):
        return "batch of " + "+".join(sorted({str(one.get("method")) for one in said}))
    return str(said.get("method"))


def _place() -> str:
    """Up to two of the innermost functions of the applications, the inner one first."""
    found: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(found) < 2:
        name = _name(frame.f_code)
        if name is not None and name not in found:
            found.append(name)
        frame = frame.f_back
    return " < ".join(found) or "elsewhere"


@cache
def _name(code: CodeType) -> str | None:
    """A function of the applications by its module and name; ``None`` for any other code."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or _UNNAMED.search(code.co_name):
        return None
    relative = path.relative_to(ROOT).as_posix()
    if relative.split("/")[0] not in _APPS or relative in _PASSED_OVER:
        return None
    return f"{path.stem}.{code.co_name}"
