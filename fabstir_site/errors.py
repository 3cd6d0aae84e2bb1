"""The one error envelope of the HTTP interface, and OpenAI's where its clients look for that.

Guarantees that whatever goes wrong, an API client gets JSON with a stable code, a sentence that
says what to do, and the matching status; never a stack trace. Admin pages keep Django's own pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse

from jobs import request_ids
from jobs.openai.errors import error_object, speaks_openai
from jobs.protocol import RequestError

logger = logging.getLogger(__name__)

_CODES = {
    400: ("invalid_request", "The request could not be understood."),
    403: ("unauthorized", "You may not do this. Log in as staff."),
    404: ("not_found", "There is nothing at this address. See /v1/version for the endpoints."),
    405: ("method_not_allowed", "This address does not answer that method."),
    413: ("payload_too_large", "The body is larger than 1 MiB. Send a shorter prompt."),
    500: ("internal_error", "The host failed to answer. Try again; its log has the details."),
}


class ErrorEnvelopeMiddleware:
    """Turns exceptions and bare error answers of API addresses into the envelope."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = await self.get_response(request)
        if response.status_code >= 400 and _is_api(request) and not _is_json(response):
            envelope = error_response(response.status_code, path=request.path_info)
            if "Allow" in response.headers:
                envelope.headers["Allow"] = response.headers["Allow"]
            return envelope
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Called by Django for an exception of a view."""
        return answer_to(exception, request=request)


def answer_to(exception: Exception, *, request: HttpRequest) -> HttpResponse | None:
    """What a client is told of an exception of a view; ``None``: Django knows."""
    if isinstance(exception, RequestError):
        return refusal_response(exception, path=request.path_info)
    if not _is_api(request) or isinstance(exception, Http404):
        return None
    if isinstance(exception, RequestDataTooBig):
        return error_response(413, path=request.path_info)
    if isinstance(exception, SuspiciousOperation):
        return error_response(400, path=request.path_info)
    if isinstance(exception, asyncio.CancelledError):
        return None
    logger.error("unforeseen error at %s", request.path, exc_info=exception)
    return error_response(500, path=request.path_info)


def refusal_response(refusal: RequestError, *, path: str = "") -> JsonResponse:
    """A typed refusal as the client sees it at ``path``."""
    body = error_object(refusal) if speaks_openai(path) else refusal.body(request_id=request_ids.current.get() or None)
    response = JsonResponse(body, status=refusal.status, headers=dict(refusal.headers))
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    elif refusal.status == HTTPStatus.CONFLICT:
        # OpenAI clients send every 409 again, unless told that it will stay one: a job that has ended has.
        response.headers["X-Should-Retry"] = "false"
    return response


def error_response(status: int, *, path: str = "") -> JsonResponse:
    """The envelope of a bare status."""
    code, message = _CODES.get(status, ("http_error", HTTPStatus(status).phrase))
    return refusal_response(RequestError(code=code, message=message, status=status), path=path)


def _is_api(request: HttpRequest) -> bool:
    return not request.path_info.startswith(("/admin", "/static"))


def _is_json(response: HttpResponseBase) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
