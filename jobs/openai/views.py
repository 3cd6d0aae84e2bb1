"""The addresses of the OpenAI API, and the two for token ids. They translate and delegate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs import openapi, request_ids
from jobs.api_keys import Scope
from jobs.choices import Choices
from jobs.completions import Serving
from jobs.http_bodies import json_object, reference_of
from jobs.http_callers import caller_of
from jobs.idempotency import answer_once
from jobs.openai import models
from jobs.openai.answers import Answer, Shape
from jobs.openai.chat import ChatShape, chat_demand
from jobs.openai.parameters import Demand
from jobs.openai.text import TextShape, text_demand
from jobs.openai.tokens import detokenize, tokenize
from jobs.openapi_operations import Part
from jobs.openapi_shapes import Limits
from jobs.stored import stored
from jobs.streaming import PATIENCE_SECONDS, PING_SECONDS, STREAM_HEADERS, STREAM_TYPE
from nodes import catalog


@method_decorator(csrf_exempt, name="dispatch")
class _Endpoint(View):
    """Without the check for forged requests, which is for cookies: these addresses know none."""

    serving: ClassVar[Serving | None] = None

    def _serving(self) -> Serving:
        assert self.serving is not None  # noqa: S101 - given by the URL configuration
        return self.serving


class _GenerationView(_Endpoint):
    """One JSON answer, or server-sent events for ``"stream": true``."""

    http_method_names = ["post", "options"]
    shape: ClassVar[Shape]
    demand_of: ClassVar[Callable[..., Demand]]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        caller = await caller_of(request)
        body = json_object(request)
        demand = self.demand_of(
            body,
            reference=reference_of(request, body),
            caller=caller,
            request_id=request_ids.current.get(),
            most_tokens=self._serving().max_completion_tokens,
        )

        async def produce() -> HttpResponseBase:
            return await self._answer(demand)

        return await answer_once(request, caller=caller, stream=demand.stream, produce=produce)

    async def _answer(self, demand: Demand) -> HttpResponseBase:
        model = await models.resolved(demand.requests[0].model)
        demand = demand.within(model.context_length)
        choices = await Choices.of(self._serving(), demand.requests, choices_per_prompt=demand.choices_per_prompt)
        # Middleware still runs between here and the first read of a streamed answer.
        choices.stop_with(asyncio.current_task())
        answer = Answer(shape=self.shape, demand=demand, choices=choices, fingerprint=models.fingerprint(model))
        if not demand.stream:
            body = await answer.whole()
            return JsonResponse(body, headers=choices.headers(), json_dumps_params={"ensure_ascii": False})
        # A refusal has its own status if it comes soon; who waits longer in the queue sees the stream live.
        await choices.begin(patience=PATIENCE_SECONDS)
        headers = {**STREAM_HEADERS, **choices.headers()}
        events = answer.events(ping_seconds=PING_SECONDS)
        return StreamingHttpResponse(events, content_type=STREAM_TYPE, headers=headers)


class ChatCompletionsView(_GenerationView):
    """``POST /v1/chat/completions``."""

    shape = ChatShape()
    demand_of = staticmethod(chat_demand)


class CompletionsView(_GenerationView):
    """``POST /v1/completions``."""

    shape = TextShape()
    demand_of = staticmethod(text_demand)


class ModelsView(_Endpoint):
    """``GET /v1/models``: what this host serves, in the shapes of the existing node and of OpenAI."""

    async def get(self, request: HttpRequest) -> HttpResponseBase:
        await caller_of(request, scope=Scope.MODELS)
        listed = [models.model_object(model) for model in await stored(catalog.served_models)()]
        chain_id = self._serving().jobs.chain_id
        return JsonResponse({"object": "list", "data": listed, "models": listed, "chain_id": chain_id})


class ModelView(_Endpoint):
    """``GET /v1/models/{model}``: one of them, by its id or an alias."""

    async def get(self, request: HttpRequest, model: str) -> HttpResponseBase:
        await caller_of(request, scope=Scope.MODELS)
        return JsonResponse(models.model_object(await models.resolved(model)))


class TokenizeView(_Endpoint):
    """``POST /tokenize``: the token ids of a text or of a conversation, as a prompt of it would have."""

    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        standing = await self._serving().limits.admit(caller=await caller_of(request))
        answer = await tokenize(json_object(request), engine=self._serving().engine)
        return JsonResponse(answer, headers=standing.headers())


class DetokenizeView(_Endpoint):
    """``POST /detokenize``: the text of token ids."""

    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> HttpResponseBase:
        standing = await self._serving().limits.admit(caller=await caller_of(request))
        answer = await detokenize(json_object(request), engine=self._serving().engine)
        return JsonResponse(answer, headers=standing.headers(), json_dumps_params={"ensure_ascii": False})


class OpenApiView(_Endpoint):
    """``GET /v1/openapi.json``: what this host takes and answers over HTTP. ``parts`` are other apps' addresses."""

    parts: ClassVar[Sequence[Part]] = ()

    async def get(self, request: HttpRequest) -> HttpResponseBase:
        served = await stored(catalog.served_models)()
        limits = Limits(
            most_tokens=self._serving().max_completion_tokens,
            models=tuple(name for model in served for name in (model.id, *model.aliases)),
            vocabulary_size=max((model.vocabulary_size for model in served), default=None),
        )
        return JsonResponse(openapi.document(limits, parts=self.parts))
