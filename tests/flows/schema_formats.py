"""Values of the formats that the node's OpenAPI document names, and a key; loaded by schemathesis as its hooks."""

from __future__ import annotations

import os
import re

import schemathesis
from hypothesis import strategies as st

_printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200)
_job_ids = st.integers(min_value=1, max_value=2**256 - 1)
_session_names = _printable.filter(lambda text: not text.rstrip("n").isdigit())

schemathesis.openapi.format("fabstir-job-id", st.builds("{}{}".format, _job_ids, st.sampled_from(["", "n"])))
schemathesis.openapi.format("fabstir-session-id", st.one_of(_session_names, _job_ids.map(str)))

_NAMES = ("job_id", "jobId", "session_id", "sessionId")
_HEADERS = ("X-Fabstir-Job", "X-Fabstir-Session")


@schemathesis.auth().apply_to(path="/v1/usage")
class Key:
    """An API key, where nothing is answered without."""

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        return os.environ["API_KEY"]

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    """A request may name one job only, which no schema can say of a body and its headers together: keep one."""
    places = [(case.headers, name) for name in _HEADERS]
    if isinstance(case.body, dict):
        places += [(case.body, name) for name in _NAMES]
    named = [(place, name) for place, name in places if place and place.get(name) is not None]
    jobs = [re.fullmatch(r"([0-9]+)n?", str(place[name])) for place, name in named]
    if len({found[1] for found in jobs if found}) > 1:
        for (place, name), found in list(zip(named, jobs, strict=True))[1:]:
            if found:
                del place[name]
    return case
