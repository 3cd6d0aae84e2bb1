"""Log probabilities in the two shapes of the OpenAI API.

Guarantees one entry per counted token, in order. A token that is part of a character has no text of its
own; the API's ``bytes`` is ``null`` for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jobs.inference.engine import TokenProbability

_REPLACEMENT = "\ufffd"
_IMPOSSIBLE = -9999.0


def chat_logprobs(probabilities: Iterable[TokenProbability]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""
    content = [
        {
            **_token(entry.token, entry.logprob),
            "top_logprobs": [_token(token, logprob) for token, logprob in entry.top],
        }
        for entry in probabilities
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(probabilities: Sequence[TokenProbability], *, offset: int) -> dict[str, Any]:
    """``choices[].logprobs`` of a text completion whose first token stands ``offset`` characters into the text."""
    offsets: list[int] = []
    for entry in probabilities:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in probabilities],
        "token_logprobs": [_finite(entry.logprob) for entry in probabilities],
        "top_logprobs": [{token: _finite(logprob) for token, logprob in entry.top} for entry in probabilities],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    """JSON knows no infinity; the API writes this for what is all but impossible."""
    return max(logprob, _IMPOSSIBLE)


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": _finite(logprob),
        "bytes": None if _REPLACEMENT in token else list(token.encode()),
    }
