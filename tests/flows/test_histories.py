"""Random histories of prompts, cancels, drops, restarts and claims against a model of what must be counted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fabstir_site.serving import SERVING
from jobs.inference.engine import GenerationFailed
from jobs.inference.scripted import reply_of
from jobs.models import Session, TokenUsage
from settlement import checkpoints
from settlement.host_chain import host_chain
from tests.flows.flow import PATHS, Flow, assert_books_agree, endless, held_after, prompt_body

BUDGET = 700

tokens = st.integers(1, 150)
steps = st.one_of(
    st.tuples(st.just("prompt"), st.sampled_from(PATHS), tokens),
    st.tuples(st.just("cancel"), st.sampled_from(PATHS[2:]), tokens),
    st.tuples(st.just("drop"), st.sampled_from(PATHS), tokens),
    st.tuples(st.just("fail"), st.sampled_from(PATHS), tokens),
    st.tuples(st.just("restart"), st.none(), st.none()),
    st.tuples(st.just("seal"), st.none(), tokens),
    st.tuples(st.just("drive"), st.none(), st.none()),
)


@dataclass
class Reference:
    """What must be counted: everything that the engine produced, up to the deposit; and what is sealed of it."""

    tracked: int = 0
    sealed: int = 0

    def produced(self, count: int) -> None:
        self.tracked += min(count, BUDGET - self.tracked)

    def seal(self, count: int) -> None:
        if self.sealed + count <= self.tracked:
            self.sealed += count


@settings(
    max_examples=25,
    deadline=None,
    # An example takes a second: a failure is shown as found, not shrunk for minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(steps, min_size=3, max_size=14))
def test_whatever_happens_every_token_is_counted_once_and_claimed_at_most_once(flow: Flow, history: list[Any]):
    job_id = flow.world.open_eth(deposit=BUDGET * 10**12, price=10**12)
    reference = Reference()
    for kind, path, count in history:
        if kind == "restart":
            _restart(flow)
        elif kind == "seal":
            _seal(job_id, count)
            reference.seal(count)
        elif kind == "drive":
            flow.drive()
            # The policy takes all there is, or nothing.
            reference.sealed = max(reference.sealed, sum(flow.claims_of(job_id)))
        else:
            flow.run(_generate(flow, kind, path, count, job_id))
            reference.produced(count)
        _compare(job_id, reference)
    flow.drive()
    # Ranges sealed by hand below the contract's minimum are refused by it; every other is paid once.
    claims = [tokens for tokens in flow.claims_of(job_id) if tokens >= 100]
    session = Session.objects.filter(job_id=job_id).first()
    assert flow.world.job(job_id).tokens_used == (session.tokens_claimed if session else 0) == sum(claims)


async def _generate(flow: Flow, kind: str, path: str, count: int, job_id: int) -> None:
    """One prompt in which the engine produces ``count`` tokens, or fewer where the deposit ends first."""
    if kind == "prompt":
        flow.use(endless())
        await flow.prompt(path, tokens=count, job_id=job_id)
    elif kind == "fail":
        flow.use(replace(reply_of("abc", tokens=count), error=GenerationFailed("out of memory")))
        await flow.prompt(path, tokens=500, job_id=job_id)
    else:
        flow.use(held_after(count))
        await (_interrupt_http if path in PATHS[:2] else _interrupt_ws)(flow, kind, path, count, job_id)
    await flow.settled()


async def _interrupt_http(flow: Flow, kind: str, path: str, count: int, job_id: int) -> None:
    exchange = await flow.exchange(prompt_body(500, job_id=job_id, stream=path == "http_sse")).send()
    answer = asyncio.ensure_future(exchange.answer())
    if await _held(answer, count):
        answer.cancel()
        await exchange.drop()


async def _interrupt_ws(flow: Flow, kind: str, path: str, count: int, job_id: int) -> None:
    async with flow.socket() as socket:
        body = prompt_body(500, job_id=job_id)
        await socket.send({"type": "inference" if path == "ws_inference" else "prompt", "request": body})
        answer = asyncio.ensure_future(socket.until("stream_end"))
        if await _held(answer, count) and kind == "cancel":
            await socket.send({"type": "stream_cancel"})
            await answer
        answer.cancel()


async def _held(answer: asyncio.Future[Any], count: int) -> bool:
    """Wait for the engine to hold after ``count`` tokens; ``False`` if the answer ended before."""
    while not answer.done():
        running = [completion for completion in SERVING._running.values() if completion is not None]
        if running and running[0].completion_tokens >= count:
            return True
        await asyncio.sleep(0)
    return False


def _restart(flow: Flow) -> None:
    """Nothing that a process holds in memory is left."""
    assert not SERVING._running
    flow.use(endless())
    host_chain.cache_clear()


def _seal(job_id: int, count: int) -> None:
    session = Session.objects.filter(job_id=job_id).first()
    if session is not None:
        checkpoints.seal(session, tokens=count, closing=False)


def _compare(job_id: int, reference: Reference) -> None:
    assert_books_agree()
    session = Session.objects.filter(job_id=job_id).first()
    tracked, sealed = (session.tokens_tracked, session.tokens_sealed) if session else (0, 0)
    assert (tracked, sealed) == (reference.tracked, reference.sealed)
    assert tracked == sum(TokenUsage.objects.filter(session__job_id=job_id).values_list("count", flat=True)) <= BUDGET
