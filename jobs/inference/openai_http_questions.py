"""What an inference server says of itself, and its tokenizer.

A probe at the first use finds out how the server is spoken to and how it tells its token counts, by
what it really does with a request of one token. Guarantees that a server which tells no counts at all
is refused: nothing it generates could be billed. Raises ``EngineError`` only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.inference.engine import (
    ChatMessage,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    GenerationRequest,
    RequestRefused,
    TextToTokenize,
)
from jobs.inference.openai_http_dialects import (
    Counting,
    Kind,
    LlamaCppEvents,
    OpenAIEvents,
    Piece,
    llama_cpp_body,
    openai_body,
)
from jobs.inference.openai_http_events import BadEvent, EventDecoder
from jobs.inference.openai_http_refusals import error_of
from jobs.inference.openai_http_wire import BrokenOff, Json, Refusal, Wire

logger = logging.getLogger(__name__)

_LENGTHS = ("max_model_len", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """``context_length`` in token ids; ``vocabulary_size`` 0 where it is not told."""

    context_length: int
    vocabulary_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the probe found.

    ``names`` maps the ids that this host serves to the server's own, and ``models`` is by the latter;
    ``slots`` answers run at the same time, 0 where it is not told.
    """

    kind: Kind
    counting: Counting
    can_tokenize: bool
    names: Mapping[str, str]
    models: Mapping[str, ModelFacts]
    slots: int = 0


async def probe(wire: Wire) -> Server:
    """Ask the server what it is. Raises ``EngineUnavailable`` with what to do."""
    upstream = wire.upstream
    listing = await list_models(wire)
    names = dict(upstream.models) or {served_id(known): known for known in listing}
    missing = sorted(set(names.values()) - set(listing))
    if missing or not names:
        raise EngineUnavailable(
            f"The inference server does not serve {missing[0] if missing else 'any model'}; it serves "
            f"{', '.join(sorted(listing)) or 'nothing'}. Correct FABSTIR_ENGINE_MODELS."
        )
    model = next(iter(names.values()))
    props = await _props(wire) if listing[model].get("owned_by") == "llamacpp" else None
    facts = {name: _facts(wire, name, listing[name], props) for name in names.values()}
    way = await _native_way(wire, model, facts[model].context_length) if props is not None else None
    kind, counting = way or await _way_of_counting(wire, model, listing[model])
    server = Server(
        kind=kind,
        counting=counting,
        can_tokenize=await _tokenizes(wire, model, kind),
        names=names,
        models=facts,
        slots=_number(props or {}, "total_slots"),
    )
    logger.info(
        "the inference server at %s speaks %s and tells %s%s",
        upstream.place,
        kind,
        counting,
        "" if server.can_tokenize else "; it has no tokenizer",
    )
    if counting is Counting.FINAL:
        logger.warning("an answer that breaks off is billed by the server's tokenizer alone, if it has one")
    return server


def served_id(known: str) -> str:
    """The id under which a server's model is served where the operator names none: of lower-case words."""
    return re.sub(r"[^a-z0-9_]+", "-", known.lower()).strip("-")[:120] or "model"


async def list_models(wire: Wire) -> dict[str, Json]:
    """The server's entries by id. Raises ``EngineUnavailable``."""
    try:
        document = await wire.ask("GET", "/v1/models")
    except Refusal as refusal:
        error = error_of(refusal, model="a list of its models")
        raise EngineUnavailable(f"{error}") from refusal
    except GenerationFailed as error:
        raise EngineUnavailable(f"{error}") from error
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise EngineUnavailable("The inference server's /v1/models is not a list of models.")
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)}


async def _props(wire: Wire) -> Json | None:
    """llama.cpp's ``/props``; None where something in front of it hides them."""
    try:
        props = await wire.ask("GET", "/props")
    except (Refusal, GenerationFailed):
        return None
    return props if isinstance(props, dict) else None


async def _native_way(wire: Wire, model: str, context_length: int) -> tuple[Kind, Counting] | None:
    """llama.cpp's own, unless it is another llama.cpp than this host knows."""
    request = GenerationRequest(request_id="probe", model=model, prompt="Hi", max_tokens=1, temperature=0.0)
    body = llama_cpp_body(request, model=model, prompt="Hi", context_length=context_length)
    try:
        pieces = await _sample(wire, "/completion", body, LlamaCppEvents())
    except Refusal as refusal:
        logger.warning("llama.cpp's own interface refuses this host (%s): its OpenAI interface is used", refusal)
        return None
    return (Kind.LLAMA_CPP, Counting.IDS) if any(piece.total for piece in pieces) else None


async def _way_of_counting(wire: Wire, model: str, entry: Json) -> tuple[Kind, Counting]:
    """Try the best way first. A server that refuses a way, or ignores it, is asked in the next."""
    messages = (ChatMessage(role="user", content="Hi"),)
    chat = GenerationRequest(request_id="probe", model=model, messages=messages, max_tokens=1, temperature=0.0)
    text = GenerationRequest(request_id="probe", model=model, prompt="Hi", max_tokens=1, temperature=0.0)
    refusal: Refusal | None = None
    for kind, counting in ((Kind.VLLM, Counting.IDS), (Kind.PLAIN, Counting.RUNNING), (Kind.PLAIN, Counting.FINAL)):
        for request in (chat, text):
            path, body = openai_body(request, model=model, kind=kind, counting=counting, max_tokens=1)
            try:
                pieces = await _sample(wire, path, body, OpenAIEvents())
            except Refusal as refused:
                refusal = refused
                continue
            return _told(pieces, is_vllm=entry.get("owned_by") == "vllm")
    raise EngineUnavailable(f"The inference server refuses a request of one token ({refusal}).")


def _told(pieces: Sequence[Piece], *, is_vllm: bool) -> tuple[Kind, Counting]:
    if any(piece.ids for piece in pieces):
        return Kind.VLLM, Counting.IDS
    totals = [number for number, piece in enumerate(pieces) if piece.total is not None]
    if not totals:
        raise EngineUnavailable(
            "The inference server tells neither token ids nor usage in its streams: what it generates cannot be "
            "billed. Use one that honours stream_options.include_usage."
        )
    finished = next((number for number, piece in enumerate(pieces) if piece.finish), len(pieces))
    kind = Kind.VLLM if is_vllm else Kind.PLAIN
    return kind, Counting.RUNNING if totals[0] <= finished and len(totals) > 1 else Counting.FINAL


async def _sample(wire: Wire, path: str, body: Json, events: LlamaCppEvents | OpenAIEvents) -> list[Piece]:
    """All pieces of a short answer. Raises ``Refusal``, ``EngineUnavailable``."""
    answer = await wire.open(path, body)
    decoder, pieces = EventDecoder(), list[Piece]()
    try:
        while not decoder.done and (data := await answer.read()):
            for event in decoder.feed(data):
                pieces.extend(events.pieces(event))
    except (BrokenOff, BadEvent, GenerationFailed) as error:
        raise EngineUnavailable(f"The inference server's answer to a request of one token failed: {error}.") from error
    finally:
        answer.close()
    return [*pieces, *events.flush()]


async def _tokenizes(wire: Wire, model: str, kind: Kind) -> bool:
    try:
        return await _count_plain(wire, model, "Hello there", kind=kind) > 0
    except (Refusal, EngineError):
        return False


async def _count_plain(wire: Wire, model: str, text: str, *, kind: Kind) -> int:
    if kind is Kind.LLAMA_CPP:
        body: Json = {"content": text, "add_special": False, "parse_special": False}
    else:
        body = {"model": model, "prompt": text, "add_special_tokens": False}
    return len(_tokens(await wire.ask("POST", "/tokenize", body)))


def _facts(wire: Wire, name: str, entry: Json, props: Json | None) -> ModelFacts:
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    generation = (props or {}).get("default_generation_settings")
    told = (
        _number(generation if isinstance(generation, dict) else {}, "n_ctx"),
        *(_number(entry, field) for field in _LENGTHS),
        _number(meta, "n_ctx"),
        wire.upstream.context_length or 0,
    )
    length = next((number for number in told if number), 0)
    if not length:
        raise EngineUnavailable(
            f"The inference server does not tell the context length of {name}: set FABSTIR_ENGINE_CONTEXT_LENGTH."
        )
    if wire.upstream.context_length:
        length = min(length, wire.upstream.context_length)
    return ModelFacts(context_length=length, vocabulary_size=_number(meta, "n_vocab"))


def _number(document: Json, name: str) -> int:
    value = document.get(name)
    return value if type(value) is int and value > 0 else 0


def _tokens(document: Any) -> tuple[int, ...]:
    tokens = document.get("tokens") if isinstance(document, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise GenerationFailed("The inference server's tokenizer answered in an unknown form.")
    return tuple(tokens)


class Questions:
    """The tokenizer of one server. Model names are the server's own."""

    def __init__(self, wire: Wire, server: Server) -> None:
        self._wire = wire
        self.server = server

    async def rendered(self, model: str, text: TextToTokenize) -> str:
        """llama.cpp: a conversation in the model's template, or the prompt as it is."""
        if text.prompt is not None:
            return text.prompt
        turns = [{"role": turn.role, "content": turn.content} for turn in text.messages]
        document = await self._ask("/apply-template", {"model": model, "messages": turns})
        prompt = document.get("prompt") if isinstance(document, dict) else None
        if not isinstance(prompt, str):
            raise GenerationFailed("The inference server's template answered in an unknown form.")
        return prompt

    async def tokenize(self, model: str, messages: tuple[ChatMessage, ...], prompt: str | None) -> tuple[int, ...]:
        """The ids of a prompt. Raises ``RequestRefused`` where the server has no tokenizer."""
        self._require_tokenizer()
        if self.server.kind is Kind.LLAMA_CPP:
            text = await self.rendered(model, TextToTokenize(model=model, messages=messages, prompt=prompt))
            return _tokens(await self._ask("/tokenize", {"model": model, "content": text, "add_special": True}))
        body: Json = {"model": model}
        if prompt is None:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in messages]
        else:
            body["prompt"] = prompt
        return _tokens(await self._ask("/tokenize", body))

    async def detokenize(self, model: str, token_ids: tuple[int, ...]) -> str:
        """The text of ids. Raises ``RequestRefused`` where the server has no tokenizer."""
        self._require_tokenizer()
        document = await self._ask("/detokenize", {"model": model, "tokens": list(token_ids)})
        field = "content" if self.server.kind is Kind.LLAMA_CPP else "prompt"
        text = document.get(field) if isinstance(document, dict) else None
        if not isinstance(text, str):
            raise GenerationFailed("The inference server's tokenizer answered in an unknown form.")
        return text

    async def count_plain(self, model: str, text: str) -> int:
        """How many tokens a piece of an answer has."""
        try:
            return await _count_plain(self._wire, model, text, kind=self.server.kind)
        except Refusal as refusal:
            raise error_of(refusal, model=model) from refusal

    async def _ask(self, path: str, body: Json) -> Any:
        try:
            return await self._wire.ask("POST", path, body)
        except Refusal as refusal:
            raise error_of(refusal, model=str(body["model"])) from refusal

    def _require_tokenizer(self) -> None:
        if not self.server.can_tokenize:
            raise RequestRefused("The inference server of this host does not tokenize.")
