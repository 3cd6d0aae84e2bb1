"""What an HTTP request says besides its parameters: its JSON body, and the job that its headers name.

Guarantees that a job named twice is the same job, and that a body of another kind is refused before it is
parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest

from jobs.openai.parameters import SESSION_FIELDS
from jobs.protocol import RequestError, SessionReference, invalid
from jobs.serializers import parse_json_object

HEADERS = {"job_id": "X-Fabstir-Job", "session_id": "X-Fabstir-Session"}


def json_object(request: HttpRequest) -> dict[str, Any]:
    """The JSON object in the body of ``request``. Raises ``RequestError``."""
    kind = request.content_type or ""
    if kind not in ("application/json", "", "text/json"):
        raise RequestError(
            code="unsupported_media_type",
            message=f"Send the body as application/json, not as {kind[:80]}.",
            status=415,
        )
    if not request.body:
        raise invalid("The body is empty. Send a JSON object.")
    return parse_json_object(request.body)


def reference_of(request: HttpRequest, body: Mapping[str, Any]) -> SessionReference:
    """The job and session that ``request`` names, in its body or its headers. Raises ``RequestError``."""
    named: list[dict[str, Any]] = [{name: body[name]} for name in SESSION_FIELDS if body.get(name) is not None]
    named += [{name: sent} for name, header in HEADERS.items() if (sent := request.headers.get(header)) is not None]
    references = [SessionReference.read(naming) for naming in named]
    # A session's number names a job only where nothing else does.
    explicit = [each for each in references if each.job_id is not None and not each.session_id] or references
    jobs = {each.job_id for each in explicit if each.job_id is not None}
    if len(jobs) > 1:
        raise invalid(f"The request names the jobs {', '.join(map(str, sorted(jobs)))}. Name one.", field="job_id")
    sessions = [each.session_id for each in references if each.session_id]
    return SessionReference(job_id=next(iter(jobs), None), session_id=sessions[0] if sessions else "")
