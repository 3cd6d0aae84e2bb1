"""The wire format between the engine process and its clients.

A frame is a 4-byte big-endian length followed by a msgpack map with ``op`` and the stream ``id``
(chosen by the client, unique on its connection; a ``chunks`` frame is for several streams).
Guarantees: what is read is typed and complete or ``FrameError`` is raised; nothing above
``MAX_FRAME_BYTES`` is read or written. Does no I/O but reading and keeps no state.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

import msgpack

from jobs.inference.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    EngineStatus,
    EngineUnavailable,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelNotLoaded,
    ModelStatus,
    RequestRefused,
    TextToTokenize,
    TokenChunk,
    TokenProbability,
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
            prompt=None if fields["prompt"] is None else _text(fields["prompt"]),
            prompt_ids=None if fields["prompt_ids"] is None else tuple(map(int, fields["prompt_ids"])),
            max_tokens=int(fields["max_tokens"]),
            temperature=float(fields["temperature"]),
            top_k=int(fields["top_k"]),
            top_p=float(fields["top_p"]),
            repetition_penalty=float(fields["repetition_penalty"]),
            stop=tuple(map(_text, fields["stop"])),
            top_logprobs=None if fields["top_logprobs"] is None else int(fields["top_logprobs"]),
            fair_share=_text(fields["fair_share"]),
            priority=int(fields["priority"]),
            patience_seconds=None if fields["patience_seconds"] is None else float(fields["patience_seconds"]),
            others_coming=int(fields["others_coming"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A generate frame is malformed: {error!r}") from error


def pack_room(busy: EngineBusy | None) -> bytes:
    """The frame that tells, unasked, that every request would be refused from now on, or no longer."""
    return pack({"op": "room", "retry_after": None if busy is None else busy.retry_after})


def room_of(frame: Frame) -> EngineBusy | None:
    """The refusal of a ``room`` frame. Raises ``FrameError``."""
    try:
        seconds = frame["retry_after"]
        return None if seconds is None else EngineBusy("The engine's queue is full.", retry_after=int(seconds))
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A room frame is malformed: {error!r}") from error


def pack_chunks(chunks: Sequence[tuple[int, TokenChunk]]) -> bytes:
    """The frame of what several streams have to tell at one moment; their ids are in its entries.

    Entries are arrays, not maps: there is one for nearly every token.
    """
    return pack({"op": "chunks", "id": 0, "chunks": [(stream, *_chunk_fields(chunk)) for stream, chunk in chunks]})


def chunks_of(frame: Frame) -> list[tuple[int, TokenChunk]]:
    """The streams and chunks of a ``chunks`` frame. Raises ``FrameError``."""
    try:
        return [(entry[0], _chunk(*entry[1:])) for entry in frame["chunks"]]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise FrameError(f"A chunks frame is malformed: {error!r}") from error


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


def pack_status(stream: int, status: EngineStatus) -> bytes:
    """The frame that answers ``status``."""
    return pack({"op": "status", "id": stream, "models": [asdict(model) for model in status.models]})


def status_of(frame: Frame) -> EngineStatus:
    """The status of a ``status`` answer. Raises ``FrameError``."""
    try:
        return EngineStatus(
            models=tuple(
                ModelStatus(**fields | {"batch_rows": tuple(fields["batch_rows"])}) for fields in frame["models"]
            )
        )
    except (KeyError, TypeError) as error:
        raise FrameError(f"A status frame is malformed: {error!r}") from error


def pack_text_to_tokenize(stream: int, text: TextToTokenize) -> bytes:
    """The frame that asks for token ids."""
    return pack({"op": "tokenize", "id": stream, "text": asdict(text)})


def text_to_tokenize_of(frame: Frame) -> TextToTokenize:
    """The text of a ``tokenize`` frame. Raises ``FrameError``."""
    try:
        fields = frame["text"]
        return TextToTokenize(
            model=_text(fields["model"]),
            messages=tuple(_message(entry) for entry in fields["messages"]),
            prompt=None if fields["prompt"] is None else _text(fields["prompt"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A tokenize frame is malformed: {error!r}") from error


def pack_ids_to_detokenize(stream: int, *, model: str, token_ids: tuple[int, ...]) -> bytes:
    """The frame that asks for the text of token ids."""
    return pack({"op": "detokenize", "id": stream, "model": model, "token_ids": token_ids})


def ids_to_detokenize_of(frame: Frame) -> tuple[str, tuple[int, ...]]:
    """The model and the token ids of a ``detokenize`` frame. Raises ``FrameError``."""
    try:
        return _text(frame["model"]), tuple(map(int, frame["token_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A detokenize frame is malformed: {error!r}") from error


def pack_token_ids(stream: int, token_ids: tuple[int, ...]) -> bytes:
    """The frame that answers ``tokenize``."""
    return pack({"op": "token_ids", "id": stream, "token_ids": token_ids})


def token_ids_of(frame: Frame) -> tuple[int, ...]:
    """The ids of a ``tokenize`` answer. Raises ``FrameError``."""
    try:
        return tuple(map(int, frame["token_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"A token_ids frame is malformed: {error!r}") from error


def pack_text(stream: int, text: str) -> bytes:
    """The frame that answers ``detokenize``."""
    return pack({"op": "text", "id": stream, "text": text})


def text_of(frame: Frame) -> str:
    """The text of a ``detokenize`` answer. Raises ``FrameError``."""
    try:
        return _text(frame["text"])
    except (KeyError, TypeError) as error:
        raise FrameError(f"A text frame is malformed: {error!r}") from error


def _chunk_fields(chunk: TokenChunk) -> tuple[object, ...]:
    probabilities = [astuple(probability) for probability in chunk.probabilities]
    fields = (chunk.sequence, chunk.token_ids, chunk.text, chunk.prompt_tokens, chunk.finish_reason)
    if chunk.untold or chunk.queued_seconds:
        return (*fields, probabilities, chunk.untold, chunk.queued_seconds)
    return (*fields, probabilities) if probabilities else fields


def _chunk(
    sequence: int,
    token_ids: list[int],
    text: str,
    prompt_tokens: int,
    finish_reason: FinishReason | None,
    probabilities: Sequence[Any] = (),
    untold: int = 0,
    queued_seconds: float = 0.0,
) -> TokenChunk:
    return TokenChunk(
        sequence=sequence,
        token_ids=tuple(token_ids),
        text=text,
        prompt_tokens=prompt_tokens,
        finish_reason=finish_reason,
        probabilities=tuple(map(_probability, probabilities)),
        untold=untold,
        queued_seconds=queued_seconds,
    )


def _probability(fields: Any) -> TokenProbability:
    token_id, token, logprob, top = fields
    return TokenProbability(
        token_id=int(token_id),
        token=_text(token),
        logprob=float(logprob),
        top=tuple((_text(name), float(value)) for name, value in top),
    )


def _message(fields: dict[str, Any]) -> ChatMessage:
    role = fields["role"]
    if role not in _ROLES:
        raise ValueError(f"unknown role {role!r}")
    return ChatMessage(role=role, content=_text(fields["content"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
