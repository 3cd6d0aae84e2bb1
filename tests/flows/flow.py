"""The node under test: its application, its engine, its settlement steps, and what its tables say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.db.models import Sum
from django.utils import timezone

from fabstir_site.asgi import application
from fabstir_site.serving import SERVING
from jobs import sessions
from jobs.inference.engine import Engine
from jobs.inference.scripted import ScriptedEngine, ScriptedReply, reply_of
from jobs.models import InferenceRequest, Session, TokenUsage
from settlement import claims, closing, earnings, following, indexer, proving, sealing
from settlement.host_chain import HostChain, host_chain
from settlement.models import Checkpoint, Transaction
from tests.chain.world import World
from tests.flows.clients import PATIENCE_SECONDS, Answer, Exchange, Socket
from tests.flows.world import FlowWorld

T = TypeVar("T")
PATHS = ("http_json", "http_sse", "ws_inference", "ws_prompt")


def prompt_body(tokens: int = 10, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "prompt": "Count.", "max_tokens": tokens, "temperature": 0.0, **fields}


def endless(text: str = "abcdefghij") -> ScriptedReply:
    """A reply longer than any test asks for: it ends with "length" at the request's ``max_tokens``."""
    return reply_of(text, tokens=4000)


def held_after(tokens: int) -> ScriptedReply:
    """A reply that waits after ``tokens`` tokens until it is cancelled or resumed."""
    return ScriptedReply(tokens=endless().tokens, pause_before=tokens)


@dataclass
class Flow:
    """``engine`` answers; ``run`` plays a coroutine on the test's one event loop; ``drive`` settles."""

    chain_world: FlowWorld
    engine: Any
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)

    @property
    def world(self) -> World:
        return self.chain_world.world

    @property
    def chain(self) -> HostChain:
        return host_chain()

    def run(self, play: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(play)

    def use(self, engine: Engine | ScriptedReply) -> Any:
        """Serve with another engine (as after a restart) or reply from now on."""
        self.engine = ScriptedEngine(engine, model="scripted") if isinstance(engine, ScriptedReply) else engine
        SERVING.engine = self.engine
        return self.engine

    # Clients ------------------------------------------------------------------------------------

    def exchange(
        self,
        body: Any,
        *,
        path: str = "/v1/inference",
        method: str = "POST",
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Exchange(
            application, path=path, method=method, body=raw, content_type=kind or "application/json", headers=headers
        )

    def post(self, body: Any, **options: Any) -> Answer:
        async def play() -> Answer:
            return await (await self.exchange(body, **options).send()).answer()

        return self.run(play())

    def socket(self) -> Socket:
        return Socket(application)

    async def prompt(self, path: str, *, tokens: int, socket: Socket | None = None, **fields: Any) -> dict[str, Any]:
        """One prompt over ``path`` to its end: the text, and the last frame or event; or the refusal."""
        if path in ("http_json", "http_sse"):
            body = prompt_body(tokens, stream=path == "http_sse", **fields)
            exchange = await self.exchange(body).send()
            answer = await exchange.answer()
            refused = answer.status != 200
            return answer.json if refused or path == "http_json" else _of_events(answer.raw)
        if socket is not None:
            return await _ask(socket, path, tokens, fields)
        async with self.socket() as own:
            return await _ask(own, path, tokens, fields)

    def ask(self, path: str, *, tokens: int, **fields: Any) -> dict[str, Any]:
        return self.run(self.prompt(path, tokens=tokens, **fields))

    async def settled(self) -> None:
        """Wait until the books of every generation are closed."""
        while SERVING._running:
            done, _ = await asyncio.wait(set(SERVING._running), timeout=PATIENCE_SECONDS)
            assert done, f"generations go on that nobody reads: {SERVING._running}"

    # Settlement ---------------------------------------------------------------------------------

    def step(self) -> None:
        """What the worker's schedule does in one round."""
        chain = self.chain
        sealing.seal_due(chain)
        proving.prove_due(chain)
        claims.submit_due(chain)
        if chain.manager is not None:
            chain.manager.broadcast()
            chain.manager.watch()
        following.follow_transactions(chain)
        earnings.book_gas_due(chain)
        closing.close_due(chain)
        indexer.index_events(chain)

    def drive(self) -> None:
        """Step until nothing moves, letting a few seconds pass where a rule waits for them."""
        quiet = 0
        while quiet < 2:
            before = _fingerprint()
            self.step()
            if _fingerprint() == before:
                quiet += 1
                self.chain_world.clock.advance(2)
            else:
                quiet = 0

    def close_due_sessions(self, *, grace: int = 60, idle: int = 900) -> list[int]:
        return sessions.close_due_sessions(
            now=timezone.now(), grace=timedelta(seconds=grace), idle=timedelta(seconds=idle)
        )

    # What the tables say ------------------------------------------------------------------------

    def session(self, job_id: int) -> Session:
        return Session.objects.get(job_id=job_id)

    def tracked(self, job_id: int) -> int:
        session = self.session(job_id)
        assert_books_agree()
        return session.tokens_tracked

    def claims_of(self, job_id: int) -> list[int]:
        """The token counts of a job's checkpoints, oldest first."""
        return [row.tokens for row in Checkpoint.objects.filter(session__job_id=job_id).order_by("index")]


def assert_books_agree() -> None:
    """Usage rows tile every session and add up; requests, checkpoints and deposits agree with them."""
    for session in Session.objects.all():
        position = session.tokens_inherited
        for row in TokenUsage.objects.filter(session=session).order_by("first_index"):
            assert row.first_index == position, f"usage of {session} has a gap or an overlap at {position}"
            position += row.count
        assert position == session.tokens_tracked
        requests = InferenceRequest.objects.filter(session=session)
        sums = requests.aggregate(all=Sum("completion_tokens"), unpaid=Sum("unpaid_tokens"))
        assert (sums["all"] or 0) - (sums["unpaid"] or 0) == position - session.tokens_inherited
        sealed = session.tokens_inherited
        for checkpoint in session.checkpoints.order_by("from_token"):
            assert checkpoint.from_token == sealed, f"checkpoints of {session} have a gap or an overlap"
            sealed = checkpoint.to_token
        assert session.tokens_claimed <= sealed == session.tokens_sealed <= session.tokens_tracked
        assert session.token_budget is None or session.tokens_tracked <= session.token_budget


def _fingerprint() -> tuple[Iterable[Any], ...]:
    return (
        list(Checkpoint.objects.order_by("id").values_list("id", "state")),
        list(Transaction.objects.order_by("id").values_list("id", "state")),
        list(Session.objects.order_by("id").values_list("id", "state", "tokens_sealed", "tokens_claimed")),
    )


def _of_events(raw: bytes) -> dict[str, Any]:
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    events = [json.loads(line) for line in lines]
    return {**events[-1], "text": "".join(event["content"] for event in events)}


async def _ask(socket: Socket, path: str, tokens: int, fields: dict[str, Any]) -> dict[str, Any]:
    body = prompt_body(tokens, stream=True)
    if path == "ws_inference":
        frames = await socket.ask({"type": "inference", "id": "m1", "request": {**body, **fields}})
    else:
        acknowledged = await socket.ask({"type": "session_init", "id": "m0", "chain_id": 31337, **fields})
        if acknowledged[-1]["type"] != "session_init_ack":
            return {"error": acknowledged[-2], **acknowledged[-1]}
        frames = await socket.ask({"type": "prompt", "id": "m1", "prompt": body["prompt"], "request": body})
    end = dict(frames[-1])
    if frames[-2]["type"] == "error":
        end["error"] = frames[-2]
    return {**end, "text": "".join(frame.get("content", "") for frame in frames)}
