"""Wire types shared by the HTTP views and the WebSocket: ids, errors, usage and billing notes.

Guarantees one error shape for every transport; each error says what is wrong and what to do, and
never carries a stack trace. Knows neither Django's models nor the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nodes.fields import MAX_UINT256

# JavaScript clients lose precision above this; larger ids go out as strings.
_MAX_SAFE_INTEGER = 2**53 - 1


@dataclass(kw_only=True, eq=False)  # an exception's traceback is set by the interpreter: not frozen
class RequestError(Exception):
    """A refusal that a client can act upon. ``code`` is stable; ``message`` is for people."""

    code: str
    message: str
    status: int
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self, *, request_id: str | None = None) -> dict[str, Any]:
        """The HTTP envelope."""
        return {
            "error_type": self.code,
            "message": self.message,
            "request_id": request_id,
            "details": dict(self.details) or None,
        }

    def frame(self, *, message_id: str | None, session_id: str | None) -> dict[str, Any]:
        """The WebSocket frame. Clients read ``code`` or ``error_code``, ``message`` or ``error``."""
        frame: dict[str, Any] = {
            "type": "error",
            "code": self.code,
            "error_code": self.code,
            "message": self.message,
            "error": self.message,
            **self.details,
        }
        if message_id is not None:
            frame["id"] = message_id
        if session_id is not None:
            frame["session_id"] = session_id
        return frame


def invalid(message: str, *, field: str | None = None) -> RequestError:
    """A 400 that names the field at fault."""
    return RequestError(
        code="validation_error" if field else "invalid_request",
        message=message,
        status=400,
        details={"field": field} if field else {},
    )


def job_id_of(value: object, *, field: str) -> int:
    """The job id that ``value`` names: 163, "163" and "163n" are one job. Raises ``RequestError``."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,78}n?", value.strip()):
        number = int(value.strip().rstrip("n"))
    else:
        raise invalid(f'{field} must be a job number such as 163, "163" or "163n".', field=field)
    if not 0 < number <= MAX_UINT256:
        raise invalid(f"{field} must be between 1 and 2^256 - 1.", field=field)
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReference:
    """The job and session that a message names, under any of the names clients use."""

    job_id: int | None = None
    session_id: str = ""

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> SessionReference:
        """From ``job_id``/``jobId`` and ``session_id``/``sessionId``. Raises ``RequestError``.

        A session id that is a number names the job of that number; any other is a session without one.
        """
        job_id: int | None = None
        for name in ("job_id", "jobId"):
            if message.get(name) is not None:
                job_id = job_id_of(message[name], field=name)
                break
        session_id = ""
        for name in ("session_id", "sessionId"):
            value = message.get(name)
            if value is not None:
                session_id = _session_id(value, field=name)
                break
        if job_id is None and re.fullmatch(r"[0-9]{1,78}n?", session_id):
            job_id = job_id_of(session_id, field="session_id")
        return cls(job_id=job_id, session_id=session_id)

    def merged_with(self, earlier: SessionReference) -> SessionReference:
        """This reference, completed by what an earlier message of the connection named."""
        if self.job_id is None and not self.session_id:
            return earlier
        return self


def _session_id(value: object, *, field: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    # Neither lone surrogates nor NUL can be stored.
    if not isinstance(value, str) or len(value) > 200 or not value.strip().isprintable():
        raise invalid(f"{field} must be a string of at most 200 printable characters or a number.", field=field)
    return value.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingNote:
    """Whether tokens of an answer can be claimed, and if not, why.

    ``session_token`` is a secret for whoever has just become the first to use a job, to be sent with
    further prompts; empty in every other answer.
    """

    job_id: int | None
    claimable: bool
    reason: str
    message: str
    session_token: str = field(default="", repr=False)

    def body(self) -> dict[str, Any]:
        """As JSON; the job id is a string, since it may exceed what JSON numbers hold."""
        body = {
            "job_id": None if self.job_id is None else str(self.job_id),
            "claimable": self.claimable,
            "reason": self.reason,
            "message": self.message,
        }
        return {**body, "session_token": self.session_token} if self.session_token else body


def wire_job_id(job_id: int | None) -> int | str | None:
    """A job id as clients expect it: a number while JSON can hold it."""
    if job_id is None or job_id <= _MAX_SAFE_INTEGER:
        return job_id
    return str(job_id)
