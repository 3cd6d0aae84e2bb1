"""An id for every HTTP request: taken from the client or made here, and sent back with the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from jobs import request_ids


class RequestIdMiddleware:
    """Sets ``jobs.request_ids.current`` for the request's task, and ``X-Request-Id`` on its answer."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = request_ids.accepted(request.headers.get(request_ids.HEADER))
        # Each request has a task, and so a context, of its own: what is generated on its behalf keeps the
        # id after the answer has been sent.
        request_ids.current.set(request_id)
        response = await self.get_response(request)
        response.headers[request_ids.HEADER] = request_id
        return response
