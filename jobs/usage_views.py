"""``GET /v1/usage``: what an API key has used today and may use, and for a key that may see it, every key."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs import api_keys
from jobs.api_keys import Scope, Usage
from jobs.http_callers import caller_of
from jobs.protocol import RequestError, invalid
from jobs.stored import stored

OWN_KEY, ALL_KEYS = "0", "1"
"""Values of ``?all=``."""


@method_decorator(csrf_exempt, name="dispatch")
class UsageView(View):
    """The caller's own key; with ``?all=1`` every key (scope "usage")."""

    http_method_names = ["get", "options"]

    async def get(self, request: HttpRequest) -> HttpResponseBase:
        everything = _everything(request)
        caller = await caller_of(request, scope=Scope.USAGE if everything else None)
        if caller.api_key is None:
            raise RequestError(
                code="api_key_required",
                message="Send an API key of this host as Authorization: Bearer. What a job has used is on the chain.",
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        found = await stored(api_keys.usage)(key_id=None if everything else caller.api_key)
        return JsonResponse({"object": "list", "data": [_body(usage) for usage in found]})


def _everything(request: HttpRequest) -> bool:
    asked = request.GET.get("all", OWN_KEY)
    if asked not in (OWN_KEY, ALL_KEYS):
        raise invalid(f"all must be {OWN_KEY} or {ALL_KEYS}.", field="all")
    return asked == ALL_KEYS


def _body(usage: Usage) -> dict[str, Any]:
    key = usage.key
    return {
        "object": "api_key.usage",
        "name": key.name,
        "key": f"{key.prefix}…",
        "scopes": [scope.value for scope in api_keys.scopes_of(key)],
        "requests_today": usage.requests,
        "tokens_today": usage.tokens,
        "tokens_reserved": usage.reserved,
        "tokens_per_day": key.tokens_per_day,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "expires_at": None if key.expires_at is None else int(key.expires_at.timestamp()),
    }
