"""HTTP endpoints of inference. They translate and delegate; ``completions`` does the work."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs.completions import Serving
from jobs.models import DeliveryPath
from jobs.protocol import RequestError, SessionReference, invalid
from jobs.serializers import completion_request, parse_json_object
from jobs.streaming import server_sent_events, whole_answer
from nodes import catalog
from nodes.database import in_database_thread


@method_decorator(csrf_exempt, name="dispatch")
class InferenceView(View):
    """``POST /v1/inference``: one JSON answer, or server-sent events for ``"stream": true``."""

    serving: ClassVar[Serving | None] = None
    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        assert self.serving is not None  # noqa: S101 - given by the URL configuration
        body = parse_json_object(_json_body(request))
        stream = body.get("stream") is True
        validated, values = completion_request(
            body,
            path=DeliveryPath.HTTP_SSE if stream else DeliveryPath.HTTP_JSON,
            reference=SessionReference.read(body),
        )
        request_id = values.get("request_id") or str(uuid.uuid4())
        completion = await self.serving.start(validated)
        # Middleware still runs between here and the first read of a streamed answer.
        completion.stop_with(asyncio.current_task())
        if stream:
            return StreamingHttpResponse(
                server_sent_events(completion, request_id=request_id),
                content_type="text/event-stream; charset=utf-8",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        answer = await whole_answer(completion, request_id=request_id, chain_id=self.serving.jobs.chain_id)
        return JsonResponse(answer, json_dumps_params={"ensure_ascii": False})


class ModelsView(View):
    """``GET /v1/models``: what this host serves, in the shapes of the existing node and of OpenAI."""

    serving: ClassVar[Serving | None] = None

    async def get(self, request: HttpRequest) -> HttpResponseBase:
        assert self.serving is not None  # noqa: S101 - given by the URL configuration
        models = await in_database_thread(catalog.served_models)()
        listed: list[dict[str, Any]] = [
            {
                "id": model.id,
                "name": model.id,
                "description": f"{model.architecture}, {model.quantization}, context {model.context_length} tokens",
                "object": "model",
                "created": int(model.added_at.timestamp()),
                "owned_by": "fabstir-host",
                "aliases": model.aliases,
                "context_length": model.context_length,
                "default": model.is_default,
            }
            for model in models
        ]
        return JsonResponse(
            {"object": "list", "data": listed, "models": listed, "chain_id": self.serving.jobs.chain_id}
        )


def _json_body(request: HttpRequest) -> bytes:
    if request.content_type not in ("application/json", "", "text/json"):
        raise RequestError(
            code="unsupported_media_type",
            message=f"Send the body as application/json, not as {request.content_type}.",
            status=415,
        )
    if not request.body:
        raise invalid("The body is empty. Send a JSON object with model, prompt and max_tokens.")
    return request.body
