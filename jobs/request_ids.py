"""The id of the request that is being answered, for answers, logs and the ledger.

Guarantees an id for every HTTP request: the one that the client sent as ``X-Request-Id`` if it can be
written to a log and a header as it is, a new one else. Code below the views reads ``current``.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

HEADER = "X-Request-Id"
MAX_LENGTH = 128

# Nothing that could break a line of a log, a header or a shell command it is pasted into.
_ACCEPTABLE = re.compile(rf"[A-Za-z0-9._:/+=@~-]{{1,{MAX_LENGTH}}}")

current: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task answers; empty outside of one."""


def accepted(sent: str | None) -> str:
    """``sent`` if it may be used as an id, else a new one."""
    if sent is not None and _ACCEPTABLE.fullmatch(sent):
        return sent
    return str(uuid.uuid4())
