"""The frames of one answer on a WebSocket: in the clear, or encrypted.

Guarantees that every frame names the message it answers, that a stream's end follows at least one chunk,
and that a frame is encoded once. Does not send, bill or decide anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring
from typing import Any, Protocol

from jobs.completions import Completion
from jobs.encryption import SessionKey
from jobs.protocol import RequestError
from jobs.streaming import usage_of

# Some clients lose what arrives in the same turn of their event loop as the end of an encrypted stream.
SECONDS_BEFORE_THE_END = 0.015
# Characters: every frame of an answer repeats the id, so that it must not multiply what a client sends.
_LONGEST_ID = 1000


class Answer(Protocol):
    """How one message is answered. Each result is one frame, ready to be sent."""

    @property
    def pause(self) -> float:
        """Seconds between the last text and ``last``."""
        ...

    def chunk(self, text: str, tokens: int) -> str:
        """A piece of the answer, of ``tokens`` token ids."""
        ...

    def last(self, finish_reason: str, end: Mapping[str, Any]) -> Iterator[str]:
        """What ends an answer; ``end`` is the content of ``stream_end``."""
        ...


class PlainAnswer:
    """``stream_chunk`` and ``stream_end``."""

    pause = 0.0

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._message = message
        start = encode(with_id({"type": "stream_chunk"}, message)).removesuffix("}")
        self._start = f'{start}, "tokens": '

    def chunk(self, text: str, tokens: int) -> str:
        """See ``Answer.chunk``. The text comes from a model: it holds no lone surrogates."""
        return f'{self._start}{tokens}, "content": {encode_basestring(text)}}}'

    def last(self, finish_reason: str, end: Mapping[str, Any]) -> Iterator[str]:
        """See ``Answer.last``."""
        yield self.chunk("", 0)
        yield encode(with_id(_of_session(dict(end), self._message), self._message))


class EncryptedAnswer:
    """``encrypted_chunk``, ``encrypted_response`` and ``stream_end``."""

    pause = SECONDS_BEFORE_THE_END

    def __init__(self, message: Mapping[str, Any], *, key: SessionKey) -> None:
        self._message = message
        self._key = key
        self._index = 0

    def chunk(self, text: str, tokens: int) -> str:
        """See ``Answer.chunk``."""
        return encode(self._chunk(text, tokens))

    def last(self, finish_reason: str, end: Mapping[str, Any]) -> Iterator[str]:
        """See ``Answer.last``. A client that cancelled reads no more than the end."""
        if finish_reason != "cancelled":
            yield encode({**self._chunk("", 0), "final": True})
            yield encode(self._named({"type": "encrypted_response", "payload": self._key.seal_final(finish_reason)}))
        yield encode(self._named(dict(end)))

    def _chunk(self, text: str, tokens: int) -> dict[str, Any]:
        payload = self._key.seal_chunk(text, index=self._index)
        self._index += 1
        return self._named({"type": "encrypted_chunk", "tokens": tokens, "payload": payload})

    def _named(self, frame: dict[str, Any]) -> dict[str, Any]:
        return with_id(_of_session(frame, self._message), self._message)


def stream_end(completion: Completion, finish_reason: str) -> dict[str, Any]:
    """The content of the frame that ends an answer."""
    return {
        "type": "stream_end",
        "reason": "cancelled" if finish_reason == "cancelled" else "complete",
        "finish_reason": finish_reason,
        "tokens_used": completion.completion_tokens,
        "usage": usage_of(completion),
        "model": completion.model,
        "billing": completion.billing.body(),
    }


def cancelled_before_it_began() -> dict[str, Any]:
    """The end of an answer of which no token was generated."""
    return {"type": "stream_end", "reason": "cancelled", "finish_reason": "cancelled", "tokens_used": 0}


def refusal(error: RequestError, message: Mapping[str, Any], *, tokens_used: int = 0) -> Iterator[str]:
    """What a message gets that cannot be answered: always an ``error`` and an end."""
    yield encode(error.frame(message_id=text_of(message, "id"), session_id=text_of(message, "session_id")))
    end = {"type": "stream_end", "reason": "error", "tokens_used": tokens_used, "finish_reason": "error"}
    yield encode(with_id(end, message))


def encode(frame: Mapping[str, Any]) -> str:
    """``frame`` as JSON text that is valid Unicode."""
    text = json.dumps(frame, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # What a client sent and gets back (its ``id``, say) holds a lone surrogate: escape it again.
        text = json.dumps(frame)
    return text


def text_of(message: Mapping[str, Any], name: str) -> str | None:
    """A field that is named in an answer, if it is text or a number."""
    value = message.get(name)
    return str(value)[:200] if isinstance(value, str | int) else None


def with_short_id(message: dict[str, Any]) -> dict[str, Any]:
    """``message`` with no more of its ``id`` than every frame of its answer can repeat.

    A longer text is cut; anything else is left out where its JSON is longer.
    """
    message_id = message.get("id")
    if isinstance(message_id, str):
        return {**message, "id": message_id[:_LONGEST_ID]} if len(message_id) > _LONGEST_ID else message
    if message_id is None or len(json.dumps(message_id)) <= _LONGEST_ID:
        return message
    return {name: value for name, value in message.items() if name != "id"}


def with_id(frame: dict[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """``frame`` with the ``id`` of the message it answers, if that had one."""
    if (message_id := message.get("id")) is not None:
        frame["id"] = message_id
    return frame


def _of_session(frame: dict[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    if (session_id := text_of(message, "session_id")) is not None:
        frame["session_id"] = session_id
    return frame
