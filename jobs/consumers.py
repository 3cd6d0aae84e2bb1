"""The WebSocket ``/v1/ws``: lifecycle, ordering and frames of both client dialects.

Dialect (a) sends ``inference``; dialect (b) ``session_init`` before every ``prompt``. Guarantees:
prompts of a socket are answered in order, a cancel is seen at once, at least one ``stream_chunk``
precedes ``stream_end``, every frame of an answer echoes the message's ``id``, and an error is always
an ``error`` frame followed by ``stream_end``. A dropped socket cancels its generation and starts the
session's grace period; it does not end the session.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer

from jobs import sessions
from jobs.completions import Completion, CompletionRequest, Serving
from jobs.inference.engine import ChatMessage
from jobs.models import DeliveryPath
from jobs.protocol import RequestError, SessionReference, invalid, wire_job_id
from jobs.refusals import INTERNAL
from jobs.serializers import completion_request, parse_json_object
from jobs.streaming import usage_of
from nodes.database import in_database_thread

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_QUEUED_MESSAGES = 32
_HISTORY_TURNS = 32
_GENERATING = ("inference", "prompt")
_PRESENCE_SECONDS = sessions.PRESENCE_LIFETIME.total_seconds() / 3

# What a prompt of dialect (b) may leave out.
_PROMPT_DEFAULTS = {"model": "default", "max_tokens": 4000, "temperature": 0.7, "stream": True}


class InferenceConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels is untyped
    """One WebSocket connection. Messages are answered one after another by a worker task."""

    serving: Serving

    def __init__(self, *args: Any, serving: Serving, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.serving = serving
        self.connection_id = uuid.uuid4()
        self.reference = SessionReference()
        self.session_ids: set[int] = set()
        self.history: list[ChatMessage] = []
        self.current: Completion | None = None
        self.unanswered_prompts = 0
        # A cancel that came before the first token of the prompt it means.
        self.cancel_next = False
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_QUEUED_MESSAGES)
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        await self.accept()
        self.tasks = [
            asyncio.ensure_future(self._answer_in_order()),
            asyncio.ensure_future(self._stay_present()),
        ]
        await self._send({"type": "connected", "message": "WebSocket connected successfully"})

    async def disconnect(self, code: int) -> None:
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self.session_ids:
            await in_database_thread(sessions.detach_socket)(self.connection_id)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        raw = text_data if text_data is not None else bytes_data or b""
        if len(raw) > MAX_MESSAGE_BYTES:
            await self._refuse(
                RequestError(
                    code="payload_too_large",
                    message=f"A message may hold {MAX_MESSAGE_BYTES} bytes. Send a shorter prompt.",
                    status=413,
                ),
                {},
            )
            await self.close(code=1009)
            return
        try:
            message = parse_json_object(raw)
        except RequestError as refusal:
            await self._refuse(refusal, {})
            return
        await self._dispatch(message)

    async def _dispatch(self, message: dict[str, Any]) -> None:
        """Answer at once what must not wait behind a generation; queue the rest in order."""
        kind = message.get("type")
        if kind == "stream_cancel":
            if self.current is not None:
                await self.current.cancel()
            else:
                self.cancel_next = self.unanswered_prompts > 0
        elif kind == "ping":
            await self._send({"type": "pong"})
        elif isinstance(kind, str) and kind in self._answers:
            try:
                self.messages.put_nowait(message)
                self.unanswered_prompts += kind in _GENERATING
            except asyncio.QueueFull:
                busy = f"This socket already has {MAX_QUEUED_MESSAGES} messages waiting. Wait for their answers."
                await self._refuse(RequestError(code="rate_limit_exceeded", message=busy, status=429), message)
        elif isinstance(kind, str) and kind.startswith("encrypted_"):
            await self._refuse(
                RequestError(
                    code="ENCRYPTION_NOT_SUPPORTED",
                    message="This host does not serve encrypted sessions. Use session_init and prompt.",
                    status=400,
                ),
                message,
            )
        else:
            known = ", ".join(("stream_cancel", "ping", *self._answers))
            await self._refuse(invalid(f"Unknown message type {kind!r:.80}. Known: {known}.", field="type"), message)

    async def _answer_in_order(self) -> None:
        while True:
            message = await self.messages.get()
            try:
                await self._answers[message["type"]](self, message)
            except RequestError as refusal:
                await self._refuse(refusal, message)
            except Exception:  # the named boundary of a socket: one bad message must not end the others
                logger.exception("a WebSocket message could not be answered")
                await self._refuse(INTERNAL, message)
            if message["type"] in _GENERATING:
                self.unanswered_prompts -= 1
                self.cancel_next = False

    async def _inference(self, message: dict[str, Any]) -> None:
        """Dialect (a): everything is in the message."""
        body = message.get("request")
        if not isinstance(body, dict):
            raise invalid("request must be an object with model, prompt and max_tokens.", field="request")
        reference = SessionReference.read({**message, **body}).merged_with(self.reference)
        request, _ = completion_request(body, path=DeliveryPath.WS_INFERENCE, reference=reference)
        await self._stream(request, message)

    async def _session_init(self, message: dict[str, Any]) -> None:
        """Dialect (b), sent before every prompt: checks the job and remembers the session."""
        reference = SessionReference.read(message)
        opened = await self.serving.open_session(reference)
        if reference != self.reference:
            self.history.clear()
        self.reference = reference
        if reference.job_id is not None:
            await self._attach(opened.id)
        acknowledgement: dict[str, Any] = {
            "type": "session_init_ack",
            "status": "success",
            "session_id": reference.session_id or (str(reference.job_id) if reference.job_id else ""),
            "job_id": wire_job_id(reference.job_id),
            "chain_id": self.serving.jobs.chain_id,
            "message": "Session initialized successfully",
            "billing": opened.billing.body(),
        }
        await self._send(_with_id(acknowledgement, message))

    async def _prompt(self, message: dict[str, Any]) -> None:
        """Dialect (b): fields in ``request`` or in the message; the session is that of the last init."""
        body = message.get("request") or {}
        if not isinstance(body, dict):
            raise invalid("request must be an object.", field="request")
        own = {name: message[name] for name in ("prompt", "model", "max_tokens", "temperature") if name in message}
        body = {**_PROMPT_DEFAULTS, **own, **body}
        reference = SessionReference.read({**message, **body}).merged_with(self.reference)
        request, values = completion_request(
            body, path=DeliveryPath.WS_PROMPT, reference=reference, history=tuple(self.history)
        )
        answer = await self._stream(request, message)
        self.history += [
            ChatMessage(role="user", content=values["prompt"]),
            ChatMessage(role="assistant", content=answer),
        ]
        del self.history[:-_HISTORY_TURNS]

    async def _session_end(self, message: dict[str, Any]) -> None:
        """The client is done: close the session of this socket without waiting for the grace period."""
        for session_id in sorted(self.session_ids):
            await in_database_thread(sessions.close_session)(session_id, reason="client ended the session")
        ended = {"type": "session_end_ack", "status": "success", "sessions_closed": len(self.session_ids)}
        await self._send(_with_id(ended, message))

    _answers = {
        "inference": _inference,
        "session_init": _session_init,
        "prompt": _prompt,
        "session_end": _session_end,
    }

    async def _stream(self, request: CompletionRequest, message: Mapping[str, Any]) -> str:
        """Answer with chunks and a ``stream_end``; returns the text."""
        completion = await self._start(request)
        self.current = completion
        parts: list[str] = []
        try:
            if self.cancel_next:
                await completion.cancel()
            if completion.billing.claimable:
                await self._attach(completion.session_id)
            async with aclosing(completion.events()) as events:
                async for event in events:
                    if event.finish_reason is None:
                        parts.append(event.text)
                        await self._send(_chunk(event.text, event.tokens, message))
                    elif event.error is not None:
                        await self._refuse(event.error, message, tokens_used=completion.completion_tokens)
                    else:
                        await self._send(_chunk("", 0, message))
                        await self._send(_end(completion, event.finish_reason, message))
        except BaseException:
            # The socket is gone or the host failed; the reading of events may not even have begun.
            await asyncio.shield(completion.cancel())
            raise
        finally:
            self.current = None
        return "".join(parts)

    async def _start(self, request: CompletionRequest) -> Completion:
        """Start; a conversation that has outgrown the context goes on without its earlier turns."""
        try:
            return await self.serving.start(request)
        except RequestError as refusal:
            if refusal.code != "TOKEN_LIMIT_EXCEEDED" or not self.history or len(request.messages) == 1:
                raise
            self.history.clear()
            return await self.serving.start(request.without_history())

    async def _attach(self, session_id: int) -> None:
        await in_database_thread(sessions.attach_socket)(session_id, connection_id=self.connection_id)
        self.session_ids.add(session_id)

    async def _stay_present(self) -> None:
        while True:
            await asyncio.sleep(_PRESENCE_SECONDS)
            if self.session_ids:
                await in_database_thread(sessions.refresh_socket)(self.connection_id)

    async def _refuse(self, refusal: RequestError, message: Mapping[str, Any], *, tokens_used: int = 0) -> None:
        message_id, session_id = _text_of(message, "id"), _text_of(message, "session_id")
        await self._send(refusal.frame(message_id=message_id, session_id=session_id))
        end = {"type": "stream_end", "reason": "error", "tokens_used": tokens_used, "finish_reason": "error"}
        await self._send(_with_id(end, message))

    async def _send(self, frame: Mapping[str, Any]) -> None:
        text = json.dumps(frame, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            # What a client sent and gets back (its ``id``, say) holds a lone surrogate: escape it again.
            text = json.dumps(frame)
        await self.send(text_data=text)


def _text_of(message: Mapping[str, Any], name: str) -> str | None:
    value = message.get(name)
    return str(value)[:200] if isinstance(value, str | int) else None


def _with_id(frame: dict[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """``frame`` with the ``id`` of the message it answers, if that had one."""
    if (message_id := message.get("id")) is not None:
        frame["id"] = message_id
    return frame


def _chunk(text: str, tokens: int, message: Mapping[str, Any]) -> dict[str, Any]:
    return _with_id({"type": "stream_chunk", "content": text, "tokens": tokens}, message)


def _end(completion: Completion, finish_reason: str, message: Mapping[str, Any]) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "type": "stream_end",
        "reason": "cancelled" if finish_reason == "cancelled" else "complete",
        "finish_reason": finish_reason,
        "tokens_used": completion.completion_tokens,
        "usage": usage_of(completion),
        "model": completion.model,
        "billing": completion.billing.body(),
    }
    if (session_id := _text_of(message, "session_id")) is not None:
        frame["session_id"] = session_id
    return _with_id(frame, message)
