"""The wire format between the engine process and its clients.

A frame is a 4-byte big-endian length followed by a msgpack map with ``op`` and the stream ``id``
(chosen by the client, unique on its connection). Guarantees: what is read is typed and complete or
``FrameError`` is raised; nothing above ``MAX_FRAME_BYTES`` is read or written. Does no I/O but
reading and keeps no state.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import asdict
from typing import Any

import msgpack

from jobs.inference.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelNotLoaded,
    RequestRefused,
    TokenChunk,
)

MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_ROLES = frozenset({"system", "user", "assistant"})
_PLAIN_ERRORS: dict[str, type[EngineError]] = {
    kind.__name__: kind for kind in (EngineUnavailable, ModelNotLoaded, RequestRefused, GenerationFailed)
}

Frame = dict[str, Any]


class FrameError(Exception):
    """The peer sent something that is not a frame of this protocol."""


def pack(frame: Frame) -> bytes:
    """The bytes of one frame. Raises ``FrameError`` if it is too large."""
    body: bytes = msgpack.packb(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"A frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES} bytes.")
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, or None at the end of the connection. Raises ``FrameError``."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"A frame of {length} bytes exceeds {MAX_FRAME_BYTES} bytes.")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        frame = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"A frame is not msgpack: {error}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
        raise FrameError("A frame is not a map with an op.")
    return frame


def pack_request(stream: int, request: GenerationRequest) -> bytes:
    """The frame that starts a generation."""
    return pack({"op": "generate", "id": stream, "request": asdict(request)})


def request_of(frame: Frame) -> GenerationRequest:
    """The request of a ``generate`` frame. Raises ``FrameError``."""
    try:
        fields = frame["request"]
        return GenerationRequest(
            request_id=_text(fields["request_id"]),
            model=_text(fields["model"]),
            messages=tuple(_message(entry) for entry in fields["messages"]),
            max_tokens=int(fields["max_tokens"]),
            temperature=float(fields["temperature"]),
            top_k=int(fields["top_k"]),
            top_p=float(fields["top_p"]),
            repetition_penalty=float(fields["repetition_penalty"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A generate frame is malformed: {error!r}") from error


def pack_chunk(stream: int, chunk: TokenChunk) -> bytes:
    """The frame of one chunk."""
    return pack(
        {
            "op": "chunk",
            "id": stream,
            "sequence": chunk.sequence,
            "token_ids": chunk.token_ids,
            "text": chunk.text,
            "prompt_tokens": chunk.prompt_tokens,
            "finish_reason": chunk.finish_reason,
        }
    )


def chunk_of(frame: Frame) -> TokenChunk:
    """The chunk of a ``chunk`` frame. Raises ``FrameError``."""
    try:
        return TokenChunk(
            sequence=frame["sequence"],
            token_ids=tuple(frame["token_ids"]),
            text=frame["text"],
            prompt_tokens=frame["prompt_tokens"],
            finish_reason=frame["finish_reason"],
        )
    except (KeyError, TypeError) as error:
        raise FrameError(f"A chunk frame is malformed: {error!r}") from error


def pack_error(stream: int, error: EngineError) -> bytes:
    """The frame of a typed error."""
    frame: Frame = {"op": "error", "id": stream, "kind": type(error).__name__, "message": str(error)}
    if isinstance(error, ContextLengthExceeded):
        frame |= {"prompt_tokens": error.prompt_tokens, "context_length": error.context_length}
    if isinstance(error, EngineBusy):
        frame |= {"retry_after": error.retry_after}
    return pack(frame)


def error_of(frame: Frame) -> EngineError:
    """The typed error of an ``error`` frame; an unknown kind is a ``GenerationFailed``."""
    kind, message = frame.get("kind"), str(frame.get("message"))
    if kind == ContextLengthExceeded.__name__:
        return ContextLengthExceeded(
            prompt_tokens=int(frame["prompt_tokens"]), context_length=int(frame["context_length"])
        )
    if kind == EngineBusy.__name__:
        return EngineBusy(message, retry_after=int(frame["retry_after"]))
    return _PLAIN_ERRORS.get(str(kind), GenerationFailed)(message)


def pack_models(stream: int, models: tuple[LoadedModel, ...]) -> bytes:
    """The frame that answers ``models``."""
    return pack({"op": "models", "id": stream, "models": [asdict(model) for model in models]})


def models_of(frame: Frame) -> tuple[LoadedModel, ...]:
    """The models of a ``models`` answer. Raises ``FrameError``."""
    try:
        return tuple(LoadedModel(**fields) for fields in frame["models"])
    except (KeyError, TypeError) as error:
        raise FrameError(f"A models frame is malformed: {error!r}") from error


def _message(fields: dict[str, Any]) -> ChatMessage:
    role = fields["role"]
    if role not in _ROLES:
        raise ValueError(f"unknown role {role!r}")
    return ChatMessage(role=role, content=_text(fields["content"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
