"""One moment of the database for many reads: what others commit meanwhile is not seen.

Guarantees that sums and the rows they are sums of belong together, though a node goes on working while
they are read; takes no lock that a writer would wait for. Not for writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction


@contextmanager
def snapshot() -> Iterator[None]:
    """All reads inside are of one moment. In a transaction of the caller's, that transaction has to see to it."""
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "postgresql":
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
    else:
        with _without_write_lock(), transaction.atomic():
            yield


@contextmanager
def _without_write_lock() -> Iterator[None]:
    """SQLite's transactions begin IMMEDIATE here, since they write; a deferred one reads one state of the WAL."""
    connection.ensure_connection()  # it reads the configured mode
    sqlite: Any = connection
    configured = sqlite.transaction_mode
    sqlite.transaction_mode = "DEFERRED"
    try:
        yield
    finally:
        sqlite.transaction_mode = configured
