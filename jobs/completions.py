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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, ParamSpec, TypeVar

from django.db import DatabaseError
from django.utils import timezone

from jobs import sessions
from jobs.inference.engine import (
    ChatMessage,
    Engine,
    EngineError,
    GenerationRequest,
    TokenChunk,
)
from jobs.job_source import JobSource, JobSourceUnavailable
from jobs.metering import Meter, MeteringUnavailable, metered
from jobs.models import DeliveryPath, InferenceRequest, RequestState
from jobs.protocol import BillingNote, RequestError, SessionReference, invalid
from jobs.refusals import INTERNAL, metering_unavailable, refusal_of
from nodes import catalog
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_ABANDON_SECONDS = 1.0

FinishReason = Literal["stop", "length", "cancelled", "budget", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A validated prompt on its way in. ``max_tokens`` in completion token ids."""

    reference: SessionReference
    model: str
    messages: tuple[ChatMessage, ...]
    max_tokens: int
    temperature: float
    path: DeliveryPath
    client_request_id: str = ""
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def without_history(self) -> CompletionRequest:
        """The same request with its last message alone."""
        return replace(self, messages=self.messages[-1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvent:
    """A piece of the answer. ``tokens`` completion token ids became ``text``.

    The last event, and only it, has a ``finish_reason``; ``error`` says why when that is "error".
    """

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    error: RequestError | None = None


@dataclass(slots=True, kw_only=True)
class Completion:
    """A running generation. Read ``events``; call ``cancel`` to stop it early.

    The generation runs in a task of its own: it is metered to its end whether or not anybody reads.
    The queue of events is bounded by the request's ``max_tokens``.
    """

    id: uuid.UUID
    session_id: int
    model: str
    prompt_tokens: int
    context_length: int
    billing: BillingNote
    meter: Meter
    _engine: Engine
    _queue: asyncio.Queue[CompletionEvent] = field(default_factory=asyncio.Queue)
    _cancelled: bool = False
    _ended: bool = False
    _stopping: asyncio.Task[None] | None = None

    @property
    def completion_tokens(self) -> int:
        """Token ids counted so far."""
        return self.meter.counted

    async def events(self) -> AsyncGenerator[CompletionEvent, None]:
        """The answer, piece by piece. Leaving early cancels the generation."""
        ended = False
        try:
            while not ended:
                event = await self._queue.get()
                ended = event.finish_reason is not None
                yield event
        finally:
            if not ended:
                await asyncio.shield(self.cancel())

    def stop_with(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel the generation, unless it has ended, once ``task`` is over: the one that answers a client.

        For an answer that is handed on before anybody reads ``events``: where the client goes away in
        between, there is no reader that could leave.
        """
        if task is not None:
            task.add_done_callback(self._stop)

    def _stop(self, task: asyncio.Task[Any]) -> None:
        if not self._ended:
            self._stopping = asyncio.ensure_future(self.cancel())

    async def cancel(self) -> None:
        """Ask the engine to stop. The last event follows with ``finish_reason`` "cancelled"."""
        self._cancelled = True
        await self._engine.cancel(str(self.id))

    async def run(self, stream: AsyncIterator[TokenChunk], first: TokenChunk, *, budget_bound: bool) -> None:
        """Meter ``first`` and the rest of ``stream`` to the end, then close the books of the request."""
        finish: FinishReason = "error"
        error: RequestError | None = None
        try:
            async for chunk in metered(stream, first, meter=self.meter):
                if chunk.finish_reason is not None:
                    finish = chunk.finish_reason
                # The last text is held back until its tokens are recorded.
                if chunk.finish_reason is None:
                    self._queue.put_nowait(CompletionEvent(text=chunk.text, tokens=len(chunk.token_ids)))
                    if self.meter.tokens_left == 0:
                        await self._engine.cancel(str(self.id))
                else:
                    await self.meter.flush()
                    if chunk.text or chunk.token_ids:
                        self._queue.put_nowait(CompletionEvent(text=chunk.text, tokens=len(chunk.token_ids)))
            finish = self._billed_finish(finish, budget_bound=budget_bound)
        except MeteringUnavailable as failure:
            error = metering_unavailable(failure)
            await self._engine.cancel(str(self.id))
        except EngineError as failure:
            error = refusal_of(failure)
        finally:
            await self._close_books(finish if error is None else "error", error)

    def _billed_finish(self, finish: FinishReason, *, budget_bound: bool) -> FinishReason:
        """Say "budget" where it was the deposit that ended the generation."""
        if finish == "cancelled" and not self._cancelled:
            return "budget"
        if finish == "length" and budget_bound and self.meter.tokens_left == 0:
            return "budget"
        return finish

    async def _close_books(self, finish: FinishReason, error: RequestError | None) -> None:
        try:
            await self.meter.flush()
        except MeteringUnavailable as failure:
            error = error or metering_unavailable(failure)
        if finish == "error" or error is not None:
            finish, error = "error", error or INTERNAL
        states = {"error": RequestState.FAILED, "cancelled": RequestState.CANCELLED}
        try:
            await in_database_thread(_finish_request)(
                self.id,
                state=states.get(finish, RequestState.FINISHED),
                finish_reason=finish,
                error="" if error is None else error.message,
                prompt_tokens=self.prompt_tokens,
            )
        except DatabaseError:
            # Its tokens are recorded; the row itself is closed by ``fail_abandoned_requests``.
            logger.exception("request %s could not be marked as ended", self.id)
        self._ended = True
        self._queue.put_nowait(CompletionEvent(finish_reason=finish, error=error))


@dataclass(slots=True, kw_only=True)
class Serving:
    """What a process needs to serve completions; made once by the site and handed to its endpoints."""

    engine: Engine
    jobs: JobSource
    serve_unpaid: bool
    max_completion_tokens: int
    _running: dict[asyncio.Task[None], Completion | None] = field(default_factory=dict)

    async def open_session(self, reference: SessionReference) -> sessions.OpenedSession:
        """The session that a message names, checked against the chain. Raises ``RequestError``."""
        if reference.job_id is not None:
            try:
                job = await self.jobs.find(reference.job_id)
            except JobSourceUnavailable as failure:
                raise RequestError(
                    code="chain_unavailable",
                    message=f"Job {reference.job_id} cannot be checked now: {failure} Try again shortly.",
                    status=503,
                    retry_after=5,
                ) from failure
            if job is not None:
                sessions.check_payable(job, host=self.jobs.host)
                return await _stored(sessions.open_job_session)(job, reference=reference)
        if not self.serve_unpaid:
            named = (
                "names no job" if reference.job_id is None else f"names job {reference.job_id}, which does not exist"
            )
            raise RequestError(
                code="payment_required",
                message=f"This host serves paid jobs only, and the request {named} on chain {self.jobs.chain_id}. "
                "Open a job for this host on the marketplace and send its id as job_id.",
                status=402,
            )
        return await _stored(sessions.open_unpaid_session)(reference, chain_id=self.jobs.chain_id)

    async def start(self, request: CompletionRequest) -> Completion:
        """Admit ``request`` and begin to generate. Raises ``RequestError`` before any token is billed."""
        try:
            model = await _stored(catalog.resolve)(request.model)
        except catalog.UnknownModel as unknown:
            raise RequestError(
                code="model_not_found",
                message=str(unknown),
                status=404,
                details={"available_models": list(unknown.available)},
            ) from unknown
        if request.max_tokens > self.max_completion_tokens:
            raise invalid(
                f"max_tokens must be at most {self.max_completion_tokens}, got {request.max_tokens}.",
                field="max_tokens",
            )
        opened = await self.open_session(request.reference)
        return await self._generate(request, model.id, model.context_length, opened)

    async def _generate(
        self, request: CompletionRequest, model: str, context_length: int, opened: sessions.OpenedSession
    ) -> Completion:
        row_id = uuid.uuid4()
        beginning = asyncio.ensure_future(self._begin(row_id, request, model, context_length, opened))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # Nobody waits any more: what has begun is stopped, counted and closed all the same.
            self._keep(asyncio.ensure_future(self._abandon(row_id, beginning)), None)
            raise

    async def _begin(
        self,
        row_id: uuid.UUID,
        request: CompletionRequest,
        model: str,
        context_length: int,
        opened: sessions.OpenedSession,
    ) -> Completion:
        """From the request's row to its first token; the rest runs in a task of its own."""
        allowed = request.max_tokens if opened.tokens_left is None else min(request.max_tokens, opened.tokens_left)
        stream = self.engine.generate(
            GenerationRequest(
                request_id=str(row_id),
                model=model,
                messages=request.messages,
                max_tokens=allowed,
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                repetition_penalty=request.repetition_penalty,
            )
        )
        await _stored(_begin_request)(row_id, request=request, session_id=opened.id, model=model)
        try:
            first = await anext(stream)
        except EngineError as failure:
            refusal = refusal_of(failure)
            await in_database_thread(_finish_request)(
                row_id, state=RequestState.FAILED, finish_reason="error", error=refusal.message, prompt_tokens=0
            )
            raise refusal from failure
        completion = Completion(
            id=row_id,
            session_id=opened.id,
            model=model,
            prompt_tokens=first.prompt_tokens,
            context_length=context_length,
            billing=opened.billing,
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
        """Cancel what is running and wait until its books are closed."""
        for completion in list(self._running.values()):
            if completion is not None:
                await completion.cancel()
        while self._running:
            await asyncio.wait(set(self._running))


def _stored(unit_of_work: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """``unit_of_work`` in a database thread; a database that is away is a refusal that says so."""

    async def work(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await in_database_thread(unit_of_work)(*args, **kwargs)
        except DatabaseError as failure:
            logger.error("the database does not answer: %s", failure, extra={"event": "database_unavailable"})
            raise RequestError(
                code="service_unavailable",
                message="The host's database does not answer. Try again shortly.",
                status=503,
                retry_after=5,
            ) from failure

    return work


def _begin_request(row_id: uuid.UUID, *, request: CompletionRequest, session_id: int, model: str) -> None:
    InferenceRequest.objects.create(
        id=row_id,
        session_id=session_id,
        client_request_id=request.client_request_id[:200],
        path=request.path,
        model=model,
        max_tokens=request.max_tokens,
    )


def _finish_request(
    row_id: uuid.UUID, *, state: RequestState, finish_reason: str, error: str, prompt_tokens: int
) -> None:
    InferenceRequest.objects.filter(pk=row_id).update(
        state=state,
        finish_reason=finish_reason,
        error=error[:500],
        prompt_tokens=prompt_tokens,
        finished_at=timezone.now(),
    )
