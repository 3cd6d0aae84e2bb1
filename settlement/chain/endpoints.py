"""The configured nodes of a chain: which to ask, in which order, and which to leave alone for now.

Guarantees that a node of another chain is asked for nothing but its chain id; that one which keeps
failing rests, longer each time, and is tried again with a single probe; and that, where there is a
choice, one that is behind the chain is passed over. Endpoints are known by position ("RPC node 1"),
never by URL. Remembers for the life of the process and decides by the clock it is given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from settlement.chain import answers
from settlement.chain.answers import ChainUnavailable, NodeRefused, Unreadable
from settlement.chain.transport import EndpointFailure, Fault, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_NODE = "no node of the chain is configured or running (set RPC_URL, or start the node)"
_FAILURES_TO_REST = 3
_SHORTEST_REST = 1.0
_LONGEST_REST = 60.0
_WRONG_CHAIN_REST = 60.0
_STALE_REST = 5.0
_HEAD_IS_NEWS = 30.0
"""Seconds for which an endpoint's head is taken for its present one."""
STALE_BLOCKS = 20
# Asking again costs no wait, so such a node may be asked while it rests if there is no other.
_QUICK = frozenset({Fault.UNREACHABLE, Fault.CUT_OFF, Fault.SERVER_ERROR, Fault.GARBLED, Fault.WRONG_ID})


class Standing(StrEnum):
    UNTRIED = "untried"
    OK = "ok"
    FAILING = "failing"
    RESTING = "resting"
    STALE = "stale"
    WRONG_CHAIN = "wrong_chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """An endpoint as an operator may see it. ``resting_seconds`` from now; ``last_block`` as last told."""

    name: str
    standing: Standing
    reason: str
    last_block: int | None
    failures: int
    resting_seconds: float


class Endpoint:
    """One node, and what this process knows of it. Its fields are changed under the pool's lock."""

    def __init__(self, transport: Transport, *, name: str) -> None:
        self.transport = transport
        self.name = name
        self.standing = Standing.UNTRIED
        self.reason = ""
        self.fault: Fault | None = None
        self.failures = 0
        self.rests = 0
        self.rests_until = 0.0
        self.probing = False
        self.proven = False
        self.head: int | None = None
        self.head_seen_at = float("-inf")
        self.batches = True

    def state(self, now: float) -> EndpointState:
        """For display."""
        return EndpointState(
            name=self.name,
            standing=self.standing,
            reason=self.reason,
            last_block=self.head,
            failures=self.failures,
            resting_seconds=max(0.0, self.rests_until - now),
        )


class Endpoints:
    """The nodes in the operator's order. Safe to use from several threads."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        chain_id: int,
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        stale_blocks: int = STALE_BLOCKS,
    ) -> None:
        self._chain_id = chain_id
        self._clock = clock
        self._stale_blocks = stale_blocks
        self._lock = threading.Lock()
        self._all = tuple(
            Endpoint(Transport(url, timeout_seconds=timeout_seconds, clock=clock), name=f"RPC node {position}")
            for position, url in enumerate(urls, 1)
        )

    def __len__(self) -> int:
        return len(self._all)

    def states(self) -> list[EndpointState]:
        """What is known of each endpoint, in the operator's order."""
        with self._lock:
            return [endpoint.state(self._clock()) for endpoint in self._all]

    def each(self) -> Iterator[Endpoint]:
        """Those that may be asked who they are without a long wait, whatever chain they are of."""
        with self._lock:
            now = self._clock()
            quick = [each for each in self._all if each.rests_until <= now or each.fault is not Fault.TIMED_OUT]
        yield from quick

    def ask(self, question: Callable[[Endpoint], T], *, what: str, stale_will_do: bool = False) -> T:
        """The answer of the first endpoint that gives one; ``question`` may put several calls to it.

        ``question`` may be put to several endpoints, so it must not matter how often it is. With
        ``stale_will_do`` an endpoint that is behind is asked when no other answered: it hands bytes on all
        the same. Raises ``ChainUnavailable``, and the node's refusal where ``question`` lets it through.
        """
        if not self._all:
            raise ChainUnavailable(NO_NODE)
        throttled: NodeRefused | None = None
        for endpoint in self._candidates(stale_will_do=stale_will_do):
            try:
                self._prove(endpoint, stale_will_do=stale_will_do)
                answer = question(endpoint)
            except NodeRefused as refused:
                if len(self._all) == 1 or not asks_for_fewer(refused):
                    # With nobody else to ask, the pace is the caller's to choose.
                    self._succeeded(endpoint)
                    raise
                throttled = refused
                self._failed(endpoint, EndpointFailure(Fault.THROTTLED), what=what)
            except Unreadable as unreadable:
                self._failed(endpoint, EndpointFailure(Fault.GARBLED, str(unreadable)), what=what)
            except EndpointFailure as failure:
                self._failed(endpoint, failure, what=what)
            else:
                self._succeeded(endpoint)
                return answer
            finally:
                endpoint.probing = False
        if throttled is not None:
            raise throttled
        raise ChainUnavailable(self._why(what))

    def saw_head(self, endpoint: Endpoint, number: int) -> None:
        """An endpoint told its newest block. Raises ``EndpointFailure`` if it is behind the others.

        Each counts by the last head it told, itself too, however long ago: what this process has seen and
        acted on must not be unseen at another node. A chain that went back as a whole is believed as soon
        as each endpoint has said so; the only endpoint always is.
        """
        with self._lock:
            believed = [each for each in self._all if each is endpoint or each.standing is not Standing.WRONG_CHAIN]
            best = max(each.head or 0 for each in believed) if len(self._all) > 1 else 0
            endpoint.head, endpoint.head_seen_at = number, self._clock()
            stale = number < best - self._stale_blocks
            if endpoint.standing is Standing.STALE and not stale:
                endpoint.standing = Standing.OK
        if stale:
            raise EndpointFailure(Fault.STALE, f"block {number}, {best} was seen")

    def refuses_batches(self, endpoint: Endpoint) -> None:
        """Remember that this node answers single calls only."""
        if endpoint.batches:
            logger.info("%s answers no batches; it is asked one by one", endpoint.name)
        endpoint.batches = False

    def _candidates(self, *, stale_will_do: bool) -> Iterator[Endpoint]:
        """Ready endpoints first; then, if none of them answered, resting ones that are quick to ask."""
        tried = set()
        for endpoint in self._all:
            with self._lock:
                if endpoint.rests_until > self._clock() or endpoint.probing:
                    continue
                # A rest that is over ends with one probe: other threads pass this endpoint by meanwhile.
                endpoint.probing = endpoint.standing in _RESTING
            tried.add(endpoint.name)
            yield endpoint
        with self._lock:
            left = [each for each in self._all if each.name not in tried and not each.probing]
            stale = sorted((e for e in left if e.standing is Standing.STALE), key=lambda each: -(each.head or 0))
            quick = [e for e in left if e.standing is Standing.RESTING and e.fault in _QUICK]
        if stale_will_do:
            yield from stale
        yield from quick

    def _prove(self, endpoint: Endpoint, *, stale_will_do: bool) -> None:
        """Before its first use, after a break, and where its head is old news: chain id and head."""
        if not endpoint.proven:
            told = answers.read(endpoint.transport.ask("eth_chainId", []), answers.quantity, method="eth_chainId")
            if told != self._chain_id:
                raise EndpointFailure(Fault.WRONG_CHAIN, f"chain {told}, not CHAIN_ID {self._chain_id}")
            endpoint.proven = True
        doubtful = endpoint.standing is Standing.STALE or self._clock() - endpoint.head_seen_at > _HEAD_IS_NEWS
        if len(self._all) > 1 and doubtful and not (stale_will_do and endpoint.standing is Standing.STALE):
            newest = endpoint.transport.ask("eth_blockNumber", [])
            self.saw_head(endpoint, answers.read(newest, answers.quantity, method="eth_blockNumber"))

    def _succeeded(self, endpoint: Endpoint) -> None:
        with self._lock:
            if endpoint.standing is Standing.STALE:
                return
            if endpoint.standing in _RESTING:
                logger.info("%s answers again", endpoint.name)
            endpoint.standing, endpoint.reason, endpoint.fault = Standing.OK, "", None
            endpoint.failures = endpoint.rests = 0
            endpoint.rests_until = 0.0

    def _failed(self, endpoint: Endpoint, failure: EndpointFailure, *, what: str) -> None:
        with self._lock:
            now = self._clock()
            endpoint.reason, endpoint.fault = str(failure), failure.fault
            endpoint.failures += 1
            # Who broke off may come back as another.
            endpoint.proven = endpoint.proven and failure.fault not in (Fault.UNREACHABLE, Fault.CUT_OFF)
            rest = self._rest(endpoint, failure, now=now)
            if rest is None:
                endpoint.standing = Standing.FAILING
            else:
                endpoint.standing = _STANDINGS.get(failure.fault, Standing.RESTING)
                endpoint.rests_until = now + rest
                endpoint.proven = endpoint.proven and failure.fault is Fault.STALE
        level = logging.ERROR if failure.fault is Fault.WRONG_CHAIN else logging.WARNING
        logger.log(level, "%s did not answer %s: %s", endpoint.name, what, failure, extra={"event": "rpc_failed"})

    def _rest(self, endpoint: Endpoint, failure: EndpointFailure, *, now: float) -> float | None:
        """Seconds to leave an endpoint alone; ``None`` for a failure that is not yet a habit."""
        if endpoint.rests_until > now:
            # Asked during its rest for want of another: that makes the rest no longer.
            return endpoint.rests_until - now
        if failure.fault is Fault.WRONG_CHAIN:
            return _WRONG_CHAIN_REST
        if failure.fault is Fault.STALE:
            return _STALE_REST
        if failure.retry_after is not None:
            return failure.retry_after
        if endpoint.failures < _FAILURES_TO_REST and endpoint.standing is not Standing.RESTING:
            return None
        endpoint.rests += 1
        return float(min(_LONGEST_REST, _SHORTEST_REST * 2 ** (endpoint.rests - 1)))

    def _why(self, what: str) -> str:
        """Why nobody answered, endpoint by endpoint."""
        reasons = "; ".join(
            f"{state.name} {state.reason or 'is being tried'}"
            + (f", asked again in {state.resting_seconds:.0f} s" if state.resting_seconds else "")
            for state in self.states()
        )
        return f"none of {len(self._all)} configured RPC nodes answered {what}: {reasons}"


_RESTING = frozenset({Standing.RESTING, Standing.STALE, Standing.WRONG_CHAIN})
_STANDINGS = {Fault.WRONG_CHAIN: Standing.WRONG_CHAIN, Fault.STALE: Standing.STALE}
_FEWER = ("rate limit", "rate-limit", "ratelimit", "too many requests", "request limit", "requests per second")


def asks_for_fewer(refused: NodeRefused) -> bool:
    """Whether a refusal is about the caller's pace and not about the call."""
    return refused.code == 429 or any(words in refused.message.lower() for words in _FEWER)
