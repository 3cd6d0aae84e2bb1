"""Database work out of coroutines.

Runs in the event loop's thread pool: one slow query does not hold up the others, and work that goes
on after its request has been answered (metering, above all) does not depend on the request's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from channels.db import database_sync_to_async

P = ParamSpec("P")
T = TypeVar("T")


def in_database_thread(unit_of_work: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """``unit_of_work`` as a coroutine function. It must be one complete transaction, or only read."""
    return cast("Callable[P, Coroutine[Any, Any, T]]", database_sync_to_async(unit_of_work, thread_sensitive=False))
