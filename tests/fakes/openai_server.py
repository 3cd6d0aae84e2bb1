"""Inference servers over real HTTP: vLLM, llama.cpp's server and one that knows OpenAI's interface alone.

Their streams are written from their documentation, field by field. ``fault`` says how an answer goes
wrong; questions of one token, which a probe asks, are always answered well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Style = Literal["vllm", "llama.cpp", "running", "plain", "silent"]
END_TOKEN = 2


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What becomes of an answer after ``after`` events."""

    after: int = 0
    how: Literal["drop", "eof", "half a line", "not json", "not an object", "error", "hold", "no usage", "nonsense"]


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """An answer with another status, to requests for more than ``above`` tokens."""

    status: int
    above: int = 1
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeServer:
    """``tokens`` are the (id, text) of the answer; a text of None is inside an unfinished character."""

    style: Style = "vllm"
    tokens: tuple[tuple[int, str | None], ...] = ((11, "The"), (12, " quick"), (13, " fox"))
    ends: Literal["stop", "length", "word"] = "stop"
    prompt: tuple[int, ...] = (1, 5, 6, 7)
    context_length: int = 64
    model: str = "org/Model-1B"
    api_key: str | None = None
    fault: Fault | Refuse | None = None
    content_type: str = "text/event-stream"
    tokenizes: bool = True
    newline: str = "\n"
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)

    def application(self) -> web.Application:
        app = web.Application(handler_args={"handler_cancellation": True})
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        if self.style == "llama.cpp":
            app.router.add_get("/props", self.props)
            app.router.add_post("/completion", self.complete)
            app.router.add_post("/apply-template", self.apply_template)
        if self.tokenizes:
            app.router.add_post("/tokenize", self.tokenize)
            app.router.add_post("/detokenize", self.detokenize)
        return app

    # Questions ----------------------------------------------------------------------------------

    async def list_models(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response(
                {"error": {"message": "Invalid API Key", "type": "authentication_error"}}, status=401
            )
        entry: dict[str, Any] = {"id": self.model, "object": "model", "created": 1}
        if self.style == "llama.cpp":
            meta = {"vocab_type": 2, "n_vocab": 49152, "n_ctx_train": 8192, "n_embd": 576, "n_params": 1, "size": 1}
            entry |= {"owned_by": "llamacpp", "meta": meta}
        elif self.style == "vllm":
            entry |= {"owned_by": "vllm", "root": self.model, "parent": None, "max_model_len": self.context_length}
        else:
            entry |= {"owned_by": "somebody", "context_length": self.context_length}
        return web.json_response({"object": "list", "data": [entry]})

    async def props(self, request: web.Request) -> web.Response:
        settings = {"id": 0, "n_ctx": self.context_length, "params": {}}
        return web.json_response({"default_generation_settings": settings, "total_slots": 3, "build_info": "b1-x"})

    async def apply_template(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        return web.json_response({"prompt": "".join(f"<{turn['role']}>{turn['content']}" for turn in body["messages"])})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        text = body["content"] if self.style == "llama.cpp" else body.get("prompt")
        tokens = list(self.prompt) if text is None else [100 + number for number, _ in enumerate(text.split())]
        if self.style == "llama.cpp":
            return web.json_response({"tokens": tokens})
        return web.json_response({"count": len(tokens), "max_model_len": self.context_length, "tokens": tokens})

    async def detokenize(self, request: web.Request) -> web.Response:
        text = " ".join(map(str, (await self._body(request))["tokens"]))
        return web.json_response({"content" if self.style == "llama.cpp" else "prompt": text})

    # Answers ------------------------------------------------------------------------------------

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if self.style in ("running", "plain", "silent") and {"return_token_ids", "top_k"} & set(body):
            return web.json_response({"error": {"message": "Unrecognized", "type": "invalid_request"}}, status=400)
        limit = body.get("max_tokens") or body["n_predict"]
        is_probe = limit == 1
        fault = None if is_probe else self.fault
        if isinstance(fault, Refuse):
            fault = fault if limit > fault.above else None
        if isinstance(fault, Refuse):
            text = fault.body if isinstance(fault.body, str) else json.dumps(fault.body)
            return web.Response(status=fault.status, text=text, headers=fault.headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream" if is_probe else self.content_type})
        await response.prepare(request)
        events = list(self.events(body))
        if is_probe:
            await response.write(b"".join(events))
            return response
        try:
            for number, event in enumerate(events):
                if fault is not None and number == fault.after:
                    event = await self._go_wrong(fault, event, request)
                await response.write(event)
                if fault is not None and number == fault.after and fault.how not in ("hold", "no usage"):
                    return response
                await asyncio.sleep(0)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        return response

    async def _go_wrong(self, fault: Fault, event: bytes, request: web.Request) -> bytes:
        if fault.how == "drop":
            assert request.transport is not None
            request.transport.abort()
        elif fault.how == "hold":
            self.holding.set()
            await self.resumed.wait()
            return event
        return {
            "half a line": event[:-9],
            "not json": b"data: {oops\n\n",
            "not an object": b"data: [1]\n\n",
            "error": b'data: {"error":{"code":500,"message":"secret words","type":"server_error"}}\n\n',
            "nonsense": b'data: {"choices":[{"token_ids":"many"}],"content":"x","tokens":"many"}\n\n',
        }.get(fault.how, b"")

    def events(self, body: dict[str, Any]) -> Iterator[bytes]:
        """The answer's events as they go over the wire."""
        limit = body.get("max_tokens") or body["n_predict"]
        tokens = self.tokens[:limit]
        ends = "length" if limit < len(self.tokens) or self.ends == "length" else self.ends
        if self.style == "llama.cpp" and "n_predict" in body:
            documents = self._llama_cpp(tokens, ends, body)
        else:
            documents = self._openai(tokens, ends, body)
        for document in documents:
            yield f"data: {json.dumps(document)}{self.newline * 2}".encode()
        yield f"data: [DONE]{self.newline * 2}".encode()

    def _llama_cpp(
        self, tokens: tuple[tuple[int, str | None], ...], ends: str, body: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        shown = [*tokens, *([(END_TOKEN, "")] if ends == "stop" else [])]
        for number, (token, text) in enumerate(shown, start=1):
            if text is None:
                continue
            event: dict[str, Any] = {
                "index": 0,
                "content": text,
                "tokens": [token],
                "stop": False,
                "id_slot": 0,
                "tokens_predicted": number,
                "tokens_evaluated": len(self.prompt),
            }
            if body.get("n_probs"):
                event["completion_probabilities"] = [
                    {"id": token, "token": text, "bytes": [], "logprob": -0.5}
                    | {"top_logprobs": [{"id": token, "token": text, "bytes": [], "logprob": -0.5}]}
                ]
            yield event
        yield {
            "index": 0,
            "content": "",
            "tokens": [],
            "id_slot": 0,
            "stop": True,
            "model": self.model,
            "tokens_predicted": len(shown),
            "tokens_evaluated": len(self.prompt),
            "stop_type": {"stop": "eos", "length": "limit", "word": "word"}[ends],
            "stopping_word": "fox" if ends == "word" else "",
            "truncated": False,
            "timings": {"predicted_n": len(shown)},
        }

    def _openai(
        self, tokens: tuple[tuple[int, str | None], ...], ends: str, body: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        chat = "messages" in body
        options = body.get("stream_options") or {}
        with_ids = self.style == "vllm" and body.get("return_token_ids")
        running = self.style in ("vllm", "running") and options.get("continuous_usage_stats")
        base = {"id": "cmpl-1", "object": "chunk", "created": 1, "model": self.model}
        steps: list[tuple[list[int], str, str | None]] = [([token], text or "", None) for token, text in tokens]
        finish = "length" if ends == "length" else "stop"
        if ends == "stop":
            steps.append(([END_TOKEN], "", finish))
        else:
            steps[-1] = (steps[-1][0], steps[-1][1], finish)
        count = 0
        if chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            extra = {"prompt_token_ids": list(self.prompt)} if with_ids else {}
            yield {**base, "choices": [first], **extra, **(self._usage(0) if running else {})}
        for number, (ids, text, reason) in enumerate(steps):
            count += len(ids)
            choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            if self.style == "vllm":
                choice["stop_reason"] = "fox" if reason and ends == "word" else None
            if with_ids:
                choice["token_ids"] = ids
                if not chat and number == 0:
                    choice["prompt_token_ids"] = list(self.prompt)
            if body.get("logprobs"):
                choice["logprobs"] = self._logprobs(text, chat=chat)
            yield {**base, "choices": [choice], **(self._usage(count) if running else {})}
        told = not (isinstance(self.fault, Fault) and self.fault.how == "no usage" and body["max_tokens"] > 1)
        if options.get("include_usage") and self.style != "silent" and told:
            yield {**base, "choices": [], **self._usage(count)}

    def _usage(self, count: int) -> dict[str, Any]:
        prompt = len(self.prompt)
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}}

    @staticmethod
    def _logprobs(text: str, *, chat: bool) -> dict[str, Any]:
        if chat:
            top = [{"token": text, "logprob": -0.25, "bytes": None}]
            return {"content": [{"token": text, "logprob": -0.25, "bytes": None, "top_logprobs": top}]}
        return {"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [{text: -0.25}], "text_offset": [0]}

    async def _body(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.path, body))
        self.headers.append(dict(request.headers))
        return body


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    """``server`` on a free port; gives its URL."""
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
