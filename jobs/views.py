"""The HTTP endpoint of the network's own contract. It translates and delegates; ``completions`` does the work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs import request_ids
from jobs.choices import Choices
from jobs.completions import CompletionRequest, Serving
from jobs.http_bodies import json_object, reference_of
from jobs.http_callers import caller_of
from jobs.idempotency import answer_once
from jobs.models import DeliveryPath
from jobs.serializers import completion_request, refuse_unsupported
from jobs.streaming import PATIENCE_SECONDS, STREAM_HEADERS, STREAM_TYPE, server_sent_events, whole_answer


@method_decorator(csrf_exempt, name="dispatch")
class InferenceView(View):
    """``POST /v1/inference``: one JSON answer, or server-sent events for ``"stream": true``."""

    serving: ClassVar[Serving | None] = None
    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        caller = await caller_of(request)
        body = json_object(request)
        refuse_unsupported(body)
        stream = body.get("stream") is True
        path = DeliveryPath.HTTP_SSE if stream else DeliveryPath.HTTP_JSON
        validated, values = completion_request(body, path=path, reference=reference_of(request, body))
        request_id = values.get("request_id") or request_ids.current.get()
        completion = replace(validated, caller=caller, client_request_id=request_id)

        async def produce() -> HttpResponseBase:
            return await self._answer(completion, stream=stream, request_id=request_id)

        return await answer_once(request, caller=caller, stream=stream, produce=produce)

    async def _answer(self, completion: CompletionRequest, *, stream: bool, request_id: str) -> HttpResponseBase:
        assert self.serving is not None  # noqa: S101 - given by the URL configuration
        choices = await Choices.of(self.serving, [completion])
        # Middleware still runs between here and the first read of a streamed answer.
        choices.stop_with(asyncio.current_task())
        if stream:
            await choices.begin(patience=PATIENCE_SECONDS)
            events = server_sent_events(choices, request_id=request_id)
            headers = {**STREAM_HEADERS, **choices.headers()}
            return StreamingHttpResponse(events, content_type=STREAM_TYPE, headers=headers)
        answer = await whole_answer(choices, request_id=request_id, chain_id=self.serving.jobs.chain_id)
        return JsonResponse(answer, headers=choices.headers(), json_dumps_params={"ensure_ascii": False})
