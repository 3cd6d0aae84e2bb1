"""Answers of ``/v1/inference`` on the wire: one JSON document, or server-sent events.

Guarantees UTF-8 without split characters, usage in every answer, and that a client that goes away
cancels its generation. Does not bill; the completion does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from jobs.choices import Choices
from jobs.completions import Completion

STREAM_TYPE = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

PATIENCE_SECONDS = 5.0
"""How long a stream waits for its first token before it begins: until then a refusal has its own status."""
PING_SECONDS = 10.0
"""How long a stream is silent at most, so that nothing in between takes its connection for dead."""

# A comment: clients skip it.
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def usage_of(completion: Completion) -> dict[str, int]:
    """Token counts in the field names of the OpenAI API, and the model's context window."""
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "context_window_size": completion.context_length,
    }


async def whole_answer(choices: Choices, *, request_id: str, chain_id: int) -> dict[str, Any]:
    """The answer as one document. Raises ``RequestError`` if the generation failed."""
    parts: list[str] = []
    finish_reason: str = "error"
    async with aclosing(choices.pieces()) as pieces:
        async for piece in pieces:
            if piece is None:
                continue
            if piece.event.error is not None:
                raise choices.failed(piece.event.error)
            parts.append(piece.event.text)
            finish_reason = piece.event.finish_reason or finish_reason
    text = "".join(parts)
    completion = choices.completions[0]
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
        "web_search_performed": False,
        "usage": usage_of(completion),
        "billing": completion.billing.body(),
    }


async def server_sent_events(choices: Choices, *, request_id: str) -> AsyncIterator[bytes]:
    """``data:`` events; the last one has a ``finish_reason``, usage and the billing note."""
    if not choices.completions:
        yield PING
    async with aclosing(choices.pieces(ping_seconds=PING_SECONDS)) as pieces:
        async for piece in pieces:
            if piece is None:
                yield PING
                continue
            event = piece.event
            if event.finish_reason is None:
                yield sse({"content": event.text, "tokens": event.tokens, "finish_reason": None})
                continue
            last: dict[str, Any] = {
                "content": "",
                "tokens": 0,
                "finish_reason": event.finish_reason,
                "request_id": request_id,
                "usage": choices.usage(),
            }
            if (completion := choices.completions.get(0)) is not None:
                last |= {
                    "tokens_used": completion.completion_tokens,
                    "model": completion.model,
                    "billing": completion.billing.body(),
                }
            if event.error is not None:
                last["error"] = event.error.body(request_id=request_id)
            yield sse(last)
            yield DONE


def sse(payload: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"
