"""Completions: admit a prompt, stream its tokens, meter them, finish.

The one place that knows jobs *and* engines, and the one path that every transport uses, so that
HTTP, SSE and both WebSocket dialects bill alike. Guarantees that nothing is generated for a job
that cannot pay, that usage is recorded before the last event is delivered, and that a client that
goes away stops its generation and is billed exactly what was generated.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from jobs import idempotency, log_ids, requests, sessions, spending
from jobs.access_rules import SpendingPolicy
from jobs.callers import ANYBODY, Caller
from jobs.inference.engine import (
    ChatMessage,
    Engine,
    EngineError,
    GenerationRequest,
    TokenChunk,
)
from jobs.job_source import ChainJob, JobSource, JobSourceUnavailable
from jobs.metering import Meter
from jobs.models import DeliveryPath, RequestState
from jobs.observation import UNOBSERVED, ObservedRequest, Observer
from jobs.protocol import RequestError, SessionReference, invalid
from jobs.rate_limits import UNLIMITED, RateLimiter, Standing
from jobs.refusals import refusal_of
from jobs.running_completions import Completion, CompletionEvent
from jobs.session_authorization import SignatureCheck
from jobs.stored import stored
from nodes.database import in_database_thread

__all__ = ["Completion", "CompletionEvent", "CompletionRequest", "Serving"]

logger = logging.getLogger(__name__)

_ABANDON_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A validated prompt on its way in. ``max_tokens`` in completion token ids.

    Exactly one of ``messages``, ``prompt`` and ``prompt_ids``, with the meaning and the options of
    ``GenerationRequest``.
    """

    reference: SessionReference
    model: str
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    max_tokens: int
    temperature: float
    path: DeliveryPath
    caller: Caller = ANYBODY
    client_request_id: str = ""
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    def without_history(self) -> CompletionRequest:
        """The same request with its last message alone."""
        return replace(self, messages=self.messages[-1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A request that may generate if its session opens, with everything that was found out on the way."""

    request: CompletionRequest
    opening: requests.Opening
    standing: Standing

    def for_engine(
        self, row_id: uuid.UUID, *, begun: requests.BegunRequest, max_tokens: int, others_coming: int
    ) -> GenerationRequest:
        request = self.request
        return GenerationRequest(
            request_id=str(row_id),
            model=begun.model.id,
            messages=request.messages,
            prompt=request.prompt,
            prompt_ids=request.prompt_ids,
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            stop=request.stop,
            top_logprobs=request.top_logprobs,
            fair_share=str(begun.opened.id),
            priority=int(begun.opened.billing.claimable),
            others_coming=others_coming,
        )


@dataclass(slots=True, kw_only=True)
class Serving:
    """What a process needs to serve completions; made once by the site and handed to its endpoints.

    ``spending`` says who may use a job; ``signatures`` recovers who signed an authorisation, and
    ``session_authorizers`` are those who may sign for a depositor. Whoever has an API key is served without
    a job; anybody else only with ``serve_unpaid`` and without ``require_api_key``.
    """

    engine: Engine
    jobs: JobSource
    serve_unpaid: bool
    max_completion_tokens: int
    spending: SpendingPolicy = SpendingPolicy.DEPOSITOR
    require_api_key: bool = False
    limits: RateLimiter = field(default_factory=RateLimiter)
    signatures: SignatureCheck | None = None
    session_authorizers: Mapping[str, Collection[str]] = field(default_factory=dict)
    observer: Observer = UNOBSERVED
    _running: dict[asyncio.Task[None], Completion | None] = field(default_factory=dict)
    _beginning: set[uuid.UUID] = field(default_factory=set)
    _starting: dict[asyncio.Task[Completion], uuid.UUID] = field(default_factory=dict)

    async def find_job(self, job_id: int) -> ChainJob | None:
        """The job as the chain states it. Raises ``RequestError`` (503) if the chain cannot be asked."""
        try:
            return await self.jobs.find(job_id)
        except JobSourceUnavailable as failure:
            raise RequestError(
                code="chain_unavailable",
                message=f"Job {job_id} cannot be checked now: {failure} Try again shortly.",
                status=503,
                retry_after=5,
            ) from failure

    async def open_session(self, reference: SessionReference, *, caller: Caller = ANYBODY) -> sessions.OpenedSession:
        """The session that a message names, checked against the chain; ``caller`` may use it.

        Raises ``RequestError``.
        """
        return await stored(await self._opening(reference, caller=caller))()

    async def _opening(self, reference: SessionReference, *, caller: Caller) -> requests.Opening:
        """The transaction that opens the session, once the chain has been asked. Raises ``RequestError``."""
        job = None if reference.job_id is None else await self.find_job(reference.job_id)
        if job is not None:
            sessions.check_payable(job, host=self.jobs.host)
            return partial(sessions.open_job_session, job, reference=reference, caller=caller, policy=self.spending)
        if caller.api_key is None and (self.require_api_key or not self.serve_unpaid):
            raise sessions.unpaid(reference, chain_id=self.jobs.chain_id, api_keys_only=self.serve_unpaid)
        return partial(sessions.open_unpaid_session, reference, chain_id=self.jobs.chain_id)

    async def admit(self, request: CompletionRequest) -> Standing:
        """Count ``request`` against its caller's limits. Raises ``RequestError`` at a limit, or without room for it.

        Before anything is looked up or written: a host that is asked too much has no time for that.
        """
        with self._noting_refusals(UNLIMITED):
            standing = await self.limits.admit(caller=request.caller, job_id=request.reference.job_id)
        with self._noting_refusals(standing):
            if (busy := self.engine.busy()) is not None:
                raise refusal_of(busy)
        return standing

    async def start(self, request: CompletionRequest, *, standing: Standing | None = None) -> Completion:
        """Admit ``request``, unless ``admit`` has (``standing``), and begin to generate.

        Raises ``RequestError`` before any token is billed.
        """
        log_ids.work_for(session=None, job=request.reference.job_id)
        if standing is None:
            standing = await self.admit(request)
        with self._noting_refusals(standing):
            return await self._start(request, standing)

    @contextmanager
    def _noting_refusals(self, standing: Standing) -> Iterator[None]:
        try:
            yield
        except RequestError as refusal:
            self.observer.refused(refusal.code)
            refusal.headers = {**standing.headers(), **refusal.headers}
            raise

    async def _start(self, request: CompletionRequest, standing: Standing) -> Completion:
        if request.max_tokens > self.max_completion_tokens:
            raise invalid(
                f"max_tokens must be at most {self.max_completion_tokens}, got {request.max_tokens}.",
                field="max_tokens",
            )
        prepared = _Prepared(
            request=request,
            opening=await self._opening(request.reference, caller=request.caller),
            standing=standing,
        )
        completion = await self._generate(prepared)
        log_ids.work_for(session=completion.session_id, job=request.reference.job_id)
        return completion

    async def _generate(self, prepared: _Prepared) -> Completion:
        row_id = uuid.uuid4()
        beginning = asyncio.ensure_future(self._begin(row_id, prepared))
        self._starting[beginning] = row_id
        beginning.add_done_callback(self._starting.pop)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # Nobody waits any more: what has begun is stopped, counted and closed all the same.
            self._keep(asyncio.ensure_future(self._abandon(row_id, beginning)), None)
            raise

    async def _begin(self, row_id: uuid.UUID, prepared: _Prepared) -> Completion:
        """From the request's row to its first token; the rest runs in a task of its own."""
        request = prepared.request
        self._beginning.add(row_id)
        try:
            begun = await stored(requests.open_and_begin)(
                row_id,
                opening=prepared.opening,
                api_key=request.caller.api_key,
                client_request_id=request.client_request_id,
                path=request.path,
                model=request.model,
                max_tokens=request.max_tokens,
            )
        finally:
            self._beginning.discard(row_id)
        model, opened = begun.model, begun.opened
        log_ids.work_for(session=opened.id, job=request.reference.job_id)
        self.limits.charge_job(prepared.standing)
        allowed = min(limit for limit in (request.max_tokens, opened.tokens_left, begun.quota) if limit is not None)
        stream = self.engine.generate(
            prepared.for_engine(row_id, begun=begun, max_tokens=allowed, others_coming=len(self._beginning))
        )
        watch = self.observer.request(_observed(request, row_id=row_id, model=model.id, allowed=allowed))
        try:
            first = await anext(stream)
        except EngineError as failure:
            refusal = spending.handing_out(refusal_of(failure), opened.billing)
            watch.ended("error", prompt_tokens=0, completion_tokens=0, error_code=refusal.code)
            await in_database_thread(requests.finish)(
                row_id, state=RequestState.FAILED, finish_reason="error", error=refusal.message, prompt_tokens=0
            )
            raise refusal from failure
        idempotency.began()
        completion = Completion(
            id=row_id,
            session_id=opened.id,
            model=model.id,
            prompt_tokens=first.prompt_tokens,
            context_length=model.context_length,
            billing=opened.billing,
            standing=prepared.standing,
            watch=watch,
            meter=Meter(session_id=opened.id, request_id=row_id, path=request.path, tokens_left=opened.tokens_left),
            _engine=self.engine,
        )
        run = self._run(completion, stream, first, budget_bound=allowed < request.max_tokens)
        self._keep(asyncio.ensure_future(run), completion)
        return completion

    async def _run(
        self,
        completion: Completion,
        stream: AsyncGenerator[TokenChunk, None],
        first: TokenChunk,
        *,
        budget_bound: bool,
    ) -> None:
        async with aclosing(stream):
            await completion.run(stream, first, budget_bound=budget_bound)
        used = completion.prompt_tokens + completion.completion_tokens
        self.limits.charge_tokens(completion.standing, tokens=used)

    async def _abandon(self, row_id: uuid.UUID, beginning: asyncio.Task[Completion]) -> None:
        # Asked again, since the engine may not know the request yet.
        while not beginning.done():
            await self.engine.cancel(str(row_id))
            await asyncio.wait({beginning}, timeout=_ABANDON_SECONDS)
        if beginning.exception() is None:
            await beginning.result().cancel()

    def _keep(self, task: asyncio.Task[None], completion: Completion | None) -> None:
        # The event loop holds tasks weakly; a metering task must live until its books are closed.
        self._running[task] = completion
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a generation ended by an unforeseen error", exc_info=failure)

    async def shut_down(self) -> None:
        """Cancel what is running or about to, and wait until its books are closed."""
        while waited := {*self._running, *self._starting}:
            # Asked again, since the engine may not know yet what is about to begin.
            for completion in list(self._running.values()):
                if completion is not None:
                    await completion.cancel()
            for row_id in list(self._starting.values()):
                await self.engine.cancel(str(row_id))
            await asyncio.wait(waited, timeout=_ABANDON_SECONDS)


def _observed(request: CompletionRequest, *, row_id: uuid.UUID, model: str, allowed: int) -> ObservedRequest:
    return ObservedRequest(
        id=str(row_id),
        model=model,
        asked=request.model,
        path=request.path,
        max_tokens=allowed,
        temperature=request.temperature,
        operation="chat" if request.messages else "text_completion",
    )
