"""Django's middlewares without a change of threads for each of their steps.

Django runs each step of its own in a thread of the request's, a dozen changes of threads for an answer. On a host
whose cores compute, each may have to wait for a core: the slowest of 100 refusals took 80 to 110 ms, and 27 to 57
without. Guarantees that steps which may ask the database still have their thread, and that addresses of API
clients, who have no cookies, pass those by.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest, HttpResponseBase
from django.middleware import clickjacking, common, csrf, security
from django.utils.deprecation import MiddlewareMixin

from fabstir_site.errors import answer_to

CLIENT_PATHS = ("/v1/", "/tokenize", "/detokenize", "/health", "/livez", "/readyz", "/status")
"""What these begin addresses API clients; all others may be a browser's, with a session."""


def is_for_clients(request: HttpRequest) -> bool:
    """Whether the address knows no cookies."""
    # As the URL configuration sees it: what stands before it is a header of the client's (Daphne-Root-Path).
    return request.path_info.startswith(CLIENT_PATHS)


class _Direct(MiddlewareMixin):
    """For steps that only look at the request or the answer: in the event loop."""

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase | None = None
        if hasattr(self, "process_request"):
            response = self.process_request(request)
        if response is None:
            response = await cast("Awaitable[HttpResponseBase]", self.get_response(request))
        if hasattr(self, "process_response"):
            response = self.process_response(request, response)
        return response


class _OfSessions(MiddlewareMixin):
    """For steps that may ask the database: in a thread, and not for API clients."""

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        if is_for_clients(request):
            return await cast("Awaitable[HttpResponseBase]", self.get_response(request))
        response: HttpResponseBase = await super().__acall__(request)
        return response


class SecurityMiddleware(_Direct, security.SecurityMiddleware):
    """See Django's."""


class SessionMiddleware(_OfSessions, sessions.SessionMiddleware):
    """See Django's."""


class CommonMiddleware(_Direct, common.CommonMiddleware):
    """See Django's."""


class CsrfViewMiddleware(_Direct, csrf.CsrfViewMiddleware):
    """See Django's. It looks at headers, cookies and the form, which are in memory by then."""

    async def process_view(  # type: ignore[override]
        self, request: HttpRequest, callback: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        return super().process_view(request, callback, args, kwargs)


class AuthenticationMiddleware(_OfSessions, auth.AuthenticationMiddleware):
    """See Django's."""


class MessageMiddleware(_OfSessions, messages.MessageMiddleware):
    """See Django's."""


class XFrameOptionsMiddleware(_Direct, clickjacking.XFrameOptionsMiddleware):
    """See Django's."""


class RefusalMiddleware:
    """Answers what a view for API clients raises. Django would look for an answer in a thread."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return await self._get_response(request)

    async def process_view(
        self, request: HttpRequest, callback: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        if not is_for_clients(request) or not iscoroutinefunction(callback):
            return None
        try:
            response: HttpResponseBase = await callback(request, *args, **kwargs)
        except Exception as failure:
            if (answer := answer_to(failure, request=request)) is None:
                raise
            return answer
        return response
