"""``POST /v1/session-auth``: a depositor's signature becomes access to its job, for a client that it names.

Translates and delegates; ``session_authorization`` decides. Answers 200, 400 for what is malformed, and 401
where the signature does not allow it, as existing clients expect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs import session_authorization, sessions
from jobs.completions import Serving
from jobs.http_bodies import json_object
from jobs.http_callers import caller_of
from jobs.models import AuthorizationScheme
from jobs.protocol import RequestError, invalid, job_id_of
from jobs.session_authorization import Authorization, Grant
from jobs.stored import stored

SIGNABLE = (AuthorizationScheme.EIP191, AuthorizationScheme.EIP712, AuthorizationScheme.FC1)
TIMELESS = AuthorizationScheme.FC1
"""The platforms' text has no times in it."""

ADDRESS = "0x[0-9a-fA-F]{40}"
SIGNATURE = "(0x)?[0-9a-fA-F]{130}"
SECONDS_END = 2**40
"""Times in Unix seconds lie below this."""


@method_decorator(csrf_exempt, name="dispatch")
class SessionAuthView(View):
    """``{sessionId, clientAddress, scheme, signature, issuedAt, expiresAt}``; times in Unix seconds."""

    serving: ClassVar[Serving | None] = None
    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        serving = self.serving
        assert serving is not None  # noqa: S101 - given by the URL configuration
        standing = await serving.limits.admit(caller=await caller_of(request))
        body = json_object(request)
        scheme = _scheme_of(body)
        job_id = job_id_of(body.get("sessionId"), field="sessionId")
        authorization = await _authorized(serving, body, job_id=job_id, scheme=scheme)
        answer: dict[str, Any] = {
            "ok": True,
            "session_id": str(job_id),
            "expires_at": int(authorization.expires_at.timestamp()),
        }
        if authorization.token:
            answer["session_token"] = authorization.token
        return JsonResponse(answer, headers={**standing.headers(), "Cache-Control": "no-store"})


async def _authorized(
    serving: Serving, body: Mapping[str, Any], *, job_id: int, scheme: AuthorizationScheme
) -> Authorization:
    client, signature = _address(body), _signature(body)
    timeless = scheme is TIMELESS
    issued_at, expires_at = (0, 0) if timeless else (_seconds(body, "issuedAt"), _seconds(body, "expiresAt"))
    job = await serving.find_job(job_id)
    if job is None or serving.signatures is None:
        raise RequestError(
            code="authorization_refused",
            message=f"There is no job {job_id} on chain {serving.jobs.chain_id} whose depositor could sign.",
            status=401,
        )
    sessions.check_payable(job, host=serving.jobs.host)
    grant = Grant(
        host=job.host.lower(),
        chain_id=job.chain_id,
        marketplace=job.marketplace,
        job_id=job.job_id,
        client=client,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    return await stored(session_authorization.authorize)(
        grant,
        job=job,
        scheme=scheme,
        signature=signature,
        check=serving.signatures,
        platforms=serving.session_authorizers,
    )


def _scheme_of(body: Mapping[str, Any]) -> AuthorizationScheme:
    known = ", ".join(scheme.value for scheme in SIGNABLE)
    for scheme in SIGNABLE:
        if body.get("scheme") == scheme.value:
            return scheme
    raise invalid(f"scheme must be one of {known}.", field="scheme")


def _address(body: Mapping[str, Any]) -> str:
    address = body.get("clientAddress")
    if not isinstance(address, str) or not re.fullmatch(ADDRESS, address):
        raise invalid("clientAddress must be an address: 0x and 40 hex digits.", field="clientAddress")
    return address.lower()


def _signature(body: Mapping[str, Any]) -> str:
    signature = body.get("signature")
    if not isinstance(signature, str) or not re.fullmatch(SIGNATURE, signature):
        raise invalid("signature must be 65 bytes in hex.", field="signature")
    return signature


def _seconds(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SECONDS_END:
        raise invalid(f"{name} must be a time in Unix seconds, as it stands in the signed text.", field=name)
    return value
