"""Which session and job this task works for, for its log lines.

Set where they become known; whatever the task logs from there on, and the tasks that it starts, carries
them. Does not log.
"""

from __future__ import annotations

from contextvars import ContextVar

from jobs import request_ids

session_id: ContextVar[int | None] = ContextVar("session_id", default=None)
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)


def work_for(*, session: int | None, job: int | None) -> None:
    """From here on. ``None``: not known, or none."""
    session_id.set(session)
    job_id.set(None if job is None else str(job))


def known() -> dict[str, int | str]:
    """The ids that this task knows, by the names of the fields of a log line."""
    found = {
        "request_id": request_ids.current.get(),
        "session_id": session_id.get(),
        "job_id": job_id.get(),
        "trace_id": trace_id.get(),
    }
    return {name: value for name, value in found.items() if value}
