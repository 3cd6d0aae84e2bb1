"""What servers are asked for an answer, and what their events mean: llama.cpp's own and OpenAI's.

A ``Piece`` is one event in common terms. Guarantees that counts are those the server told: ids, or a
running total; that an end token is marked where the server shows it to be one; and that an option
which a server may not know is refused by name, never dropped. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from jobs.inference.engine import FinishReason, GenerationFailed, GenerationRequest, RequestRefused, TokenProbability
from jobs.inference.openai_http_wire import Json

# Token ids are natural numbers; the id of a token whose id was not told is this.
UNTOLD_ID = -1


class Kind(StrEnum):
    """How a server is spoken to."""

    LLAMA_CPP = "llama.cpp"
    """Its own ``/completion``: ids and a running total in every event."""
    VLLM = "vllm"
    """OpenAI's interface with vLLM's additions: token ids, or at least a running total."""
    PLAIN = "openai"
    """OpenAI's interface and no more."""


class Counting(StrEnum):
    """How a server tells what it generated, best first."""

    IDS = "token ids"
    """Every event has the ids of its tokens."""
    RUNNING = "running usage"
    """Every event has the total so far."""
    FINAL = "final usage"
    """The last event has the total: what an answer that breaks off has cost, nobody told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One event. ``total`` completion tokens were generated so far, if the event says so.

    ``end_token``: the last of them is the end token, which is neither shown nor billed.
    ``closing``: nothing follows.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    total: int | None = None
    prompt_tokens: int | None = None
    finish: FinishReason | None = None
    end_token: bool = False
    closing: bool = False
    probabilities: tuple[TokenProbability, ...] = ()


class Dialect(Protocol):
    """The reader of one answer's events."""

    def pieces(self, event: Json) -> Iterator[Piece]:
        """What an event says. Raises ``GenerationFailed``."""
        ...

    def flush(self) -> Iterator[Piece]:
        """What was held back when the events ended early."""
        ...


class LlamaCppEvents:
    """Events of ``/completion``.

    The event of an end token looks like that of any token without text; only the next event, the last,
    tells what it was. So a piece without text waits for the next event. Tokens inside an unfinished
    character have no event of their own: the running total knows them.
    """

    def __init__(self) -> None:
        self._held: Piece | None = None

    def pieces(self, event: Json) -> Iterator[Piece]:
        """See ``Dialect.pieces``."""
        _raise_error_of(event)
        held, self._held = self._held, None
        stopped = event.get("stop") is True
        piece = Piece(
            text=_text(event.get("content")),
            ids=_ids(event.get("tokens")),
            total=_count(event.get("tokens_predicted")),
            prompt_tokens=_count(event.get("tokens_evaluated")),
            probabilities=_contents(event.get("completion_probabilities")),
        )
        if not stopped:
            if held:
                yield held
            if piece.text:
                yield piece
            else:
                self._held = piece
            return
        ended = event.get("stop_type") == "eos"
        if held:
            yield replace(held, end_token=ended)
        finish: FinishReason = "length" if event.get("stop_type") == "limit" else "stop"
        yield replace(piece, finish=finish, end_token=ended and held is None, closing=True)

    def flush(self) -> Iterator[Piece]:
        """See ``Dialect.flush``."""
        held, self._held = self._held, None
        if held:
            yield held


class OpenAIEvents:
    """Chunks of ``/v1/chat/completions`` and ``/v1/completions``, with vLLM's additions if they are there."""

    def pieces(self, event: Json) -> Iterator[Piece]:
        """See ``Dialect.pieces``."""
        _raise_error_of(event)
        usage = event.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            raise _nonsense("choices")
        prompt_ids = choice.get("prompt_token_ids") or event.get("prompt_token_ids")
        prompt_tokens = len(prompt_ids) if isinstance(prompt_ids, list) else _count(usage.get("prompt_tokens"))
        delta = choice.get("delta")
        finish = _finish(choice.get("finish_reason"))
        yield Piece(
            text=_text(delta.get("content") if isinstance(delta, dict) else choice.get("text")),
            ids=_ids(choice.get("token_ids")),
            total=_count(usage.get("completion_tokens")),
            prompt_tokens=prompt_tokens,
            finish=finish,
            # vLLM: null unless a stop string ended the answer, whose tokens are part of it.
            end_token=finish == "stop" and "stop_reason" in choice and not isinstance(choice["stop_reason"], str),
            probabilities=_probabilities(choice.get("logprobs"), ids=_ids(choice.get("token_ids"))),
        )

    def flush(self) -> Iterator[Piece]:
        """See ``Dialect.flush``."""
        return iter(())


def llama_cpp_body(request: GenerationRequest, *, model: str, prompt: str | list[int], context_length: int) -> Json:
    """The body for ``/completion``."""
    body: Json = {
        "model": model,
        "prompt": prompt,
        "n_predict": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        # Defaults of the server that this host's clients did not ask for.
        "min_p": 0.0,
        "repeat_penalty": request.repetition_penalty,
        "repeat_last_n": context_length,
        "stop": list(request.stop),
        "stream": True,
        "return_tokens": True,
    }
    if request.top_logprobs is not None:
        body["n_probs"] = max(1, request.top_logprobs)
    return body


def openai_body(
    request: GenerationRequest, *, model: str, kind: Kind, counting: Counting, max_tokens: int
) -> tuple[str, Json]:
    """Path and body for OpenAI's interface. Raises ``RequestRefused`` for what the server may not know."""
    body: Json = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if kind is Kind.VLLM:
        body |= {"top_k": request.top_k or -1, "min_p": 0.0, "repetition_penalty": request.repetition_penalty}
        body["return_token_ids"] = True
    elif request.top_k or request.repetition_penalty != 1.0:
        option = "top_k" if request.top_k else "repetition_penalty"
        raise RequestRefused(f"{option} is not supported by the inference server of this host. Leave it out.")
    if counting is not Counting.FINAL:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if request.messages:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return "/v1/chat/completions", body
    body["prompt"] = request.prompt if request.prompt_ids is None else list(request.prompt_ids)
    if request.top_logprobs is not None:
        body["logprobs"] = request.top_logprobs
    return "/v1/completions", body


def _raise_error_of(event: Json) -> None:
    error = event.get("error")
    if error is None:
        return
    kind = error.get("type") if isinstance(error, dict) else None
    # Its message may quote the prompt.
    said = f" ({kind})" if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 64 else ""
    raise GenerationFailed(f"The inference server reported an error during the answer{said}.")


def _finish(reason: Any) -> FinishReason | None:
    if reason is None or reason == "":
        return None
    if reason in ("abort", "error"):
        raise GenerationFailed("The inference server gave the answer up.")
    return "length" if reason == "length" else "stop"


def _nonsense(name: str) -> GenerationFailed:
    return GenerationFailed(f"The inference server sent {name} of an unknown form.")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _nonsense("text")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise _nonsense("token ids")
    return tuple(value)


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise _nonsense("a token count")
    return value


def _probabilities(logprobs: Any, *, ids: tuple[int, ...]) -> tuple[TokenProbability, ...]:
    """Of a chat chunk (``content``) or of a completion chunk (parallel lists)."""
    if not isinstance(logprobs, dict):
        return ()
    found = _contents(logprobs["content"]) if "content" in logprobs else tuple(_parallel(logprobs))
    if len(ids) != len(found):
        return found
    return tuple(replace(entry, token_id=token) for entry, token in zip(found, ids, strict=True))


def _contents(entries: Any) -> tuple[TokenProbability, ...]:
    if not entries:
        return ()
    try:
        return tuple(
            TokenProbability(
                token_id=int(entry.get("id", UNTOLD_ID)),
                token=_text(entry["token"]),
                logprob=float(entry["logprob"]),
                top=tuple(
                    (_text(other["token"]), float(other["logprob"])) for other in entry.get("top_logprobs") or ()
                ),
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _nonsense("log probabilities") from None


def _parallel(logprobs: Json) -> Iterator[TokenProbability]:
    try:
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True):
            yield TokenProbability(
                token_id=UNTOLD_ID,
                token=_text(token),
                logprob=float(value),
                top=tuple((name, float(other)) for name, other in (top or {}).items()),
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _nonsense("log probabilities") from None
