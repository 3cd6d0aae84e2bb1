"""The running engine as an operator sees and steers it, from code that has no event loop.

Guarantees: every answer comes within the given seconds, and an engine that is away, hangs or refuses is a
sentence for the operator, never an exception. What was begun (a load, say) goes on in the engine after an
answer that did not wait for it. Nothing here is called within a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from django.conf import settings

from jobs.engine_choice import make_engine
from jobs.engine_config import NothingToServe, write_engine_config
from jobs.inference.client import EngineClient
from jobs.inference.engine import EngineError, LoadedModel, ModelStatus

LOOK_SECONDS = 2.0
CHANGE_SECONDS = 5.0
ELSEWHERE = "An inference server elsewhere (FABSTIR_ENGINE_URL) loads its models itself; this node cannot steer it."

Change = Literal["load", "unload", "pin", "unpin"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """What the engine said of its models and their load, by model id; or the ``problem`` why it said nothing."""

    models: Mapping[str, LoadedModel] = field(default_factory=dict)
    load: Mapping[str, ModelStatus] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a change: the model as it is then, ``unfinished`` while that goes on, or the ``problem``."""

    model: str
    now: LoadedModel | None = None
    unfinished: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Whether the engine serves by the catalog now, and what an operator should know of that."""

    reached: bool
    sentence: str


def is_own() -> bool:
    """Whether this node generates itself, so that there is an engine to steer."""
    return settings.ENVIRONMENT.engine_upstream is None


def look(*, seconds: float = LOOK_SECONDS) -> EngineView:
    """The engine's models as they are now."""

    async def ask() -> EngineView:
        engine = make_engine()
        try:
            models, status = await engine.models(), await engine.status()
        finally:
            await engine.close()
        return EngineView(
            models={model.model: model for model in models}, load={entry.model: entry for entry in status.models}
        )

    found = _within(seconds, ask())
    return EngineView(problem=found) if isinstance(found, str) else found


def change(wanted: Change, models: Sequence[str], *, seconds: float = CHANGE_SECONDS) -> list[Outcome]:
    """Have the engine load, unload, pin or unpin ``models`` (ids); one outcome for each, in their order."""
    if not is_own():
        return [Outcome(model=model, problem=ELSEWHERE) for model in models]
    write_down()
    found = _within(seconds + LOOK_SECONDS, _change(wanted, models, seconds=seconds))
    return [Outcome(model=model, problem=found) for model in models] if isinstance(found, str) else found


def tell(*, seconds: float = LOOK_SECONDS) -> Told:
    """Write the engine's configuration from the catalog and have a running engine read it.

    To be called after every change of the catalog, outside its transaction. An engine that was not
    reached finds the change when it starts, or when a request names a model that it does not know.
    """
    if not is_own():
        return Told(reached=False, sentence=ELSEWHERE)
    write_down()

    async def refresh() -> None:
        engine = EngineClient(settings.ENVIRONMENT.engine_socket)
        try:
            await engine.refresh()
        finally:
            await engine.close()

    problem = _within(seconds, refresh())
    if problem is None:
        return Told(reached=True, sentence="The running engine knows; no restart is needed.")
    return Told(reached=False, sentence=f"The engine learns of it when it starts. {problem}")


def write_down() -> None:
    """Write what an engine reads that is asked for a model that it does not know; possibly that there is none."""
    with contextlib.suppress(NothingToServe):
        write_engine_config()


async def _change(wanted: Change, models: Sequence[str], *, seconds: float) -> list[Outcome]:
    engine = EngineClient(settings.ENVIRONMENT.engine_socket)
    tasks = {model: asyncio.ensure_future(carry_out(engine, wanted, model)) for model in models}
    try:
        await asyncio.wait(tasks.values(), timeout=seconds)
        pending = {model for model, task in tasks.items() if not task.done()}
        meanwhile = {model.model: model for model in await engine.models()} if pending else {}
        return [
            Outcome(model=model, now=meanwhile.get(model), unfinished=True)
            if model in pending
            else _outcome(model, task)
            for model, task in tasks.items()
        ]
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        await engine.close()


async def carry_out(engine: EngineClient, wanted: Change, model: str) -> LoadedModel:
    """One change, waited for as long as it takes. Raises an ``EngineError``."""
    changes: dict[Change, Callable[[], Awaitable[LoadedModel]]] = {
        "load": lambda: engine.load(model),
        "unload": lambda: engine.unload(model),
        "pin": lambda: engine.pin(model, pinned=True),
        "unpin": lambda: engine.pin(model, pinned=False),
    }
    return await changes[wanted]()


def _outcome(model: str, task: asyncio.Future[LoadedModel]) -> Outcome:
    failure = task.exception()
    if failure is None:
        return Outcome(model=model, now=task.result())
    if isinstance(failure, EngineError):
        return Outcome(model=model, problem=str(failure))
    raise failure


def _within(seconds: float, question: Coroutine[Any, Any, T]) -> T | str:
    """The answer, or why there is none. ``question`` brings its own event loop."""

    async def limited() -> T:
        async with asyncio.timeout(seconds):
            return await question

    try:
        return asyncio.run(limited())
    except TimeoutError:
        return f"The engine did not answer within {seconds:g} s. See its log."
    except EngineError as error:
        return str(error)
