"""``manage.py engine [serve|status|load|unload|pin|unpin]``: be the engine process, or ask the running one.

Without a word (or with ``serve``) this process becomes the engine. The others print one line per
model, while it loads one for each step. Translates and delegates to ``EngineClient``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from jobs import engine_control
from jobs.engine_config import NothingToServe, write_engine_config
from jobs.inference.client import EngineClient
from jobs.inference.engine import EngineError, LoadedModel, ModelStatus
from nodes.catalog import UnknownModel, resolve

_PROGRESS_SECONDS = 0.2


class Command(BaseCommand):
    """Serve the catalog's models, or look after the engine that does."""

    help = "Serve the catalog's models on the engine socket until stopped, or ask and steer the running engine."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One optional word, and a model for most of them."""
        actions = parser.add_subparsers(dest="action")
        actions.add_parser("serve", help="become the engine process (the default)")
        actions.add_parser("status", help="show the models, what they take and what they do")
        for name, purpose in (
            ("load", "load a model now"),
            ("unload", "free a model's memory"),
            ("pin", "load a model and never unload it"),
            ("unpin", "let a model be unloaded when it is idle"),
        ):
            actions.add_parser(name, help=purpose).add_argument("model", help="its id or an alias")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve, or ask; what the engine refuses is one line and exit status 1."""
        action: Any = options["action"] or "serve"
        if action == "serve":
            self._serve()
            return
        if not engine_control.is_own():
            raise CommandError(engine_control.ELSEWHERE)
        try:
            if action == "status":
                asyncio.run(self._status())
            else:
                model = resolve(options["model"]).id
                engine_control.write_down()
                asyncio.run(self._change(action, model=model))
        except (EngineError, UnknownModel) as error:
            raise CommandError(str(error)) from error

    def _serve(self) -> None:
        try:
            path = write_engine_config()
        except NothingToServe as nothing:
            raise CommandError(str(nothing)) from nothing
        connections.close_all()
        # The engine needs neither Django nor the database: replace this process by one without them.
        os.execv(sys.executable, [sys.executable, "-m", "jobs.inference.process", "--config", str(path)])  # noqa: S606

    async def _status(self) -> None:
        engine = EngineClient(settings.ENVIRONMENT.engine_socket)
        try:
            models, status = await engine.models(), await engine.status()
        finally:
            await engine.close()
        load = {entry.model: entry for entry in status.models}
        for model in models:
            self.stdout.write(_line(model) + _load(load.get(model.model)))

    async def _change(self, action: engine_control.Change, *, model: str) -> None:
        engine = EngineClient(settings.ENVIRONMENT.engine_socket)
        change = asyncio.ensure_future(engine_control.carry_out(engine, action, model))
        shown = ""
        try:
            while not (await asyncio.wait([change], timeout=_PROGRESS_SECONDS))[0]:
                line = next((_line(one) for one in await engine.models() if one.model == model), "")
                if line != shown:
                    self.stdout.write(line)
                    shown = line
            self.stdout.write(_line(await change))
        finally:
            change.cancel()
            await engine.close()


def _line(model: LoadedModel) -> str:
    """One model in one line: what it is, where it computes and what it takes."""
    state = f"loading {model.progress:.0%}" if model.state == "loading" else model.state
    marks = " pinned" * model.pinned
    where = f"{model.device} {model.compute_type}  {model.replicas} x {model.batch_rows} requests"
    problem = f"  {model.problem}" if model.problem else ""
    return f"{model.model}  {state}{marks}  {where}  {model.memory_bytes // 10**6} MB{problem}"


def _load(status: ModelStatus | None) -> str:
    if status is None:
        return ""
    return (
        f"  running {status.running} in {len(status.batch_rows)} batches, waiting {status.waiting} of"
        f" {status.queue_size}, {status.tokens_generated} tokens in {status.batches} batches, {status.refused} refused"
    )
