"""Database work on behalf of a client: what to say when the database is away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from django.db import DatabaseError

from jobs.protocol import RequestError
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def stored(unit_of_work: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """``unit_of_work`` in a database thread; a database that is away is a refusal that says so."""

    async def work(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await in_database_thread(unit_of_work)(*args, **kwargs)
        except DatabaseError as failure:
            logger.error("the database does not answer: %s", failure, extra={"event": "database_unavailable"})
            raise RequestError(
                code="service_unavailable",
                message="The host's database does not answer. Try again shortly.",
                status=503,
                retry_after=5,
            ) from failure

    return work
