"""Answers of a completion on the wire: one JSON document, or server-sent events.

Guarantees UTF-8 without split characters, usage in every answer, and that a client that goes away
cancels its generation. Does not bill; the completion does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from jobs.completions import Completion
from jobs.protocol import RequestError


def usage_of(completion: Completion) -> dict[str, int]:
    """Token counts in the field names of the OpenAI API, and the model's context window."""
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "context_window_size": completion.context_length,
    }


async def whole_answer(completion: Completion, *, request_id: str, chain_id: int) -> dict[str, Any]:
    """The answer as one document. Raises ``RequestError`` if the generation failed."""
    parts: list[str] = []
    finish_reason: str = "error"
    async with aclosing(completion.events()) as events:
        async for event in events:
            parts.append(event.text)
            if event.error is not None:
                raise _failed(event.error, completion)
            finish_reason = event.finish_reason or finish_reason
    text = "".join(parts)
    return {
        "model": completion.model,
        # Clients of different ages read the text under different names.
        "content": text,
        "response": text,
        "text": text,
        "tokens_used": completion.completion_tokens,
        "finish_reason": finish_reason,
        "request_id": request_id,
        "chain_id": chain_id,
        "usage": usage_of(completion),
        "billing": completion.billing.body(),
    }


def _failed(error: RequestError, completion: Completion) -> RequestError:
    details = {**error.details, "usage": usage_of(completion)}
    return RequestError(
        code=error.code,
        message=error.message,
        status=error.status,
        details=details,
        retry_after=error.retry_after,
    )


async def server_sent_events(completion: Completion, *, request_id: str) -> AsyncIterator[bytes]:
    """``data:`` events; the last one has a ``finish_reason``, usage and the billing note."""
    async with aclosing(completion.events()) as events:
        async for event in events:
            if event.finish_reason is None:
                yield _event({"content": event.text, "tokens": event.tokens, "finish_reason": None})
                continue
            last: dict[str, Any] = {
                "content": "",
                "tokens": 0,
                "finish_reason": event.finish_reason,
                "tokens_used": completion.completion_tokens,
                "model": completion.model,
                "request_id": request_id,
                "usage": usage_of(completion),
                "billing": completion.billing.body(),
            }
            if event.error is not None:
                last["error"] = event.error.body(request_id=request_id)
            yield _event(last)
            yield b"data: [DONE]\n\n"


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"
