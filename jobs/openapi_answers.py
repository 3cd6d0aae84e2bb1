"""JSON schemas of what the addresses that generate and count answer."""

from __future__ import annotations

from jobs.openapi_schemas import (
    CHAIN_ID,
    COUNT,
    MAYBE_TEXT,
    NULL,
    NUMBER,
    TEXT,
    TRUTH,
    by_name,
    list_of,
    object_of,
    or_null,
    ref,
)
from jobs.strict_fields import Schema

_FINISH_DETAIL: Schema = {
    "enum": ["stop", "length", "budget", "cancelled"],
    "description": "What ended it, where the API has no word: the deposit, or the host.",
}


def schemas() -> dict[str, Schema]:
    """Every answer, by its name in the document."""
    return {
        "Error": object_of(
            error_type=TEXT,
            message=TEXT,
            request_id=MAYBE_TEXT,
            details={"type": ["object", "null"]},
        ),
        "OpenAIError": object_of(error=_openai_error()),
        "StreamError": object_of(error=_openai_error(), usage=ref("Usage")),
        "Inference": _inference(),
        "InferenceChunk": _inference_chunk(),
        "ChatCompletion": _completion("chat.completion", _chat_choice()),
        "Completion": _completion("text_completion", _text_choice()),
        "ChatCompletionChunk": _chunk("chat.completion.chunk", _chat_piece()),
        "CompletionChunk": _chunk("text_completion", _text_choice()),
        "Model": _model(),
        "ModelList": object_of(
            object={"const": "list"},
            data=list_of(ref("Model")),
            models=list_of(ref("Model")),
            chain_id=CHAIN_ID,
        ),
        "Tokens": object_of(model=TEXT, count=COUNT, max_model_len=COUNT, tokens=list_of(COUNT)),
        "Text": object_of(model=TEXT, prompt=TEXT),
        "Usage": _usage(),
        "Billing": _billing(),
    }


def event(chunk: str) -> Schema:
    """One server-sent event. After the last chunk, or the error that ended the answer, comes ``[DONE]``."""
    piece: Schema = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [ref(chunk), ref("StreamError")]},
    }
    data = {"anyOf": [{"const": "[DONE]"}, piece]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _openai_error() -> Schema:
    return object_of(
        message=TEXT, type=TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT, optional={"details": {"type": "object"}}
    )


def _usage() -> Schema:
    return object_of(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT, context_window_size=COUNT)


def _billing() -> Schema:
    return object_of(
        job_id=MAYBE_TEXT,
        claimable=TRUTH,
        reason=TEXT,
        message=TEXT,
        optional={"session_token": TEXT},
    )


def _inference() -> Schema:
    return object_of(
        model=TEXT,
        content=TEXT,
        response=TEXT,
        text=TEXT,
        tokens_used=COUNT,
        finish_reason={"enum": ["stop", "length", "budget", "cancelled"]},
        request_id=TEXT,
        chain_id=CHAIN_ID,
        web_search_performed={"const": False},
        usage=ref("Usage"),
        billing=ref("Billing"),
    )


def _inference_chunk() -> Schema:
    last: dict[str, Schema] = {
        "request_id": TEXT,
        "usage": ref("Usage"),
        "tokens_used": COUNT,
        "model": TEXT,
        "billing": ref("Billing"),
        "error": ref("Error"),
    }
    finish = {"enum": [None, "stop", "length", "budget", "cancelled", "error"]}
    return object_of(content=TEXT, tokens=COUNT, finish_reason=finish, optional=last)


def _head(kind: str) -> dict[str, Schema]:
    return {"id": TEXT, "object": {"const": kind}, "created": COUNT, "model": TEXT, "system_fingerprint": TEXT}


def _extensions() -> dict[str, Schema]:
    timings = object_of(
        prompt_n=COUNT,
        prompt_ms=NUMBER,
        predicted_n=COUNT,
        predicted_ms=NUMBER,
        predicted_per_second={"type": ["number", "null"]},
    )
    return {"usage": ref("Usage"), "timings": timings, "billing": or_null(ref("Billing"))}


def _completion(kind: str, content: dict[str, Schema]) -> Schema:
    choice = object_of(index=COUNT, **content, finish_reason={"enum": ["stop", "length"]}, finish_detail=_FINISH_DETAIL)
    return object_of(**_head(kind), choices={**list_of(choice), "minItems": 1}, **_extensions())


def _chunk(kind: str, content: dict[str, Schema]) -> Schema:
    """A piece of a stream; the last one has the usage. With ``include_usage`` that one has no choices."""
    finish = {"enum": [None, "stop", "length"]}
    choice = object_of(index=COUNT, **content, finish_reason=finish, optional={"finish_detail": _FINISH_DETAIL})
    last = _extensions()
    last["usage"] = or_null(last["usage"])
    return object_of(**_head(kind), choices=list_of(choice), optional=last)


def _chat_choice() -> dict[str, Schema]:
    message = object_of(role={"const": "assistant"}, content=TEXT, refusal=NULL)
    return {"message": message, "logprobs": or_null(_chat_logprobs())}


def _chat_piece() -> dict[str, Schema]:
    delta = object_of(optional={"role": {"const": "assistant"}, "content": TEXT})
    return {"delta": delta, "logprobs": or_null(_chat_logprobs())}


def _text_choice() -> dict[str, Schema]:
    logprobs = object_of(
        tokens=list_of(TEXT),
        token_logprobs=list_of(NUMBER),
        top_logprobs=list_of(by_name(NUMBER)),
        text_offset=list_of(COUNT),
    )
    return {"text": TEXT, "logprobs": or_null(logprobs)}


def _chat_logprobs() -> Schema:
    token: dict[str, Schema] = {
        "token": TEXT,
        "logprob": NUMBER,
        "bytes": {"type": ["array", "null"], "items": COUNT},
    }
    entry = object_of(**token, top_logprobs=list_of(object_of(**token)))
    return object_of(content=list_of(entry), refusal=NULL)


def _model() -> Schema:
    return object_of(
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        name=TEXT,
        description=TEXT,
        aliases=list_of(TEXT),
        context_length=COUNT,
        default=TRUTH,
    )
