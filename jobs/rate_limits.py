"""Rate limits: token buckets per API key, network address and job, kept where all web processes see them.

Guarantees one round trip to Redis per admission, that a job's bucket is only drawn upon for requests that
were let spend it (so that naming a job slows nobody down), and that a Redis that is away fails no request:
then nothing is limited, and the log says so once. There is no bucket that all callers share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Literal

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from jobs.callers import Caller
from jobs.protocol import RequestError

logger = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE_SECONDS = 5.0
_PREFIX = "fabstir:limit:"

# Each bucket fills up in a minute. ARGV: whether to refuse, then capacity and cost of every bucket. A
# bucket may be overdrawn by what is charged afterwards, and then admits nobody until it is above zero.
# Returns the first bucket that refuses (0: none), its wait, and each bucket's level and time to full.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local refusing, wait, levels = 0, 0, {}
for i, key in ipairs(KEYS) do
  local capacity, cost = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local state = redis.call('HMGET', key, 'level', 'at')
  local level = capacity
  if state[1] then
    level = math.min(capacity, tonumber(state[1]) + math.max(0, now - tonumber(state[2])) * capacity / 60000)
  end
  levels[i] = level
  local needed = math.max(cost, 0.001)
  if ARGV[1] == '1' and refusing == 0 and level < needed then
    refusing, wait = i, math.ceil((needed - level) * 60000 / capacity)
  end
end
local answer = {refusing, wait}
for i, key in ipairs(KEYS) do
  local capacity, cost = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  if refusing == 0 and cost > 0 then
    levels[i] = levels[i] - cost
    local full = math.ceil((capacity - levels[i]) * 60000 / capacity)
    redis.call('HSET', key, 'level', tostring(levels[i]), 'at', tostring(now))
    redis.call('PEXPIRE', key, full + 1000)
  end
  answer[2 * i + 1] = math.floor(levels[i])
  answer[2 * i + 2] = math.ceil((capacity - levels[i]) * 60000 / capacity)
end
return answer
"""

Kind = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """``capacity`` requests or tokens a minute for ``subject``."""

    kind: Kind
    subject: str
    capacity: int

    @property
    def key(self) -> str:
        return f"{_PREFIX}{self.kind}:{self.subject}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What a bucket holds after an admission; it is full again after ``reset_ms``."""

    bucket: Bucket
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a caller stands with its limits. Empty where nothing limits it."""

    levels: tuple[Level, ...] = ()
    buckets: tuple[Bucket, ...] = ()

    def headers(self) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*`` headers, of the tightest bucket of each kind."""
        found: dict[str, str] = {}
        for kind in ("requests", "tokens"):
            levels = [level for level in self.levels if level.bucket.kind == kind]
            if not levels:
                continue
            tightest = min(levels, key=lambda level: level.remaining / level.bucket.capacity)
            found |= {
                f"x-ratelimit-limit-{kind}": str(tightest.bucket.capacity),
                f"x-ratelimit-remaining-{kind}": str(max(0, tightest.remaining)),
                f"x-ratelimit-reset-{kind}": f"{tightest.reset_ms / 1000:.3f}s",
            }
        return found


UNLIMITED = Standing()


@dataclass(slots=True, kw_only=True)
class RateLimiter:
    """Admits requests at ``url``'s Redis; ``None`` for a limit that is not set.

    A Redis that does not answer within ``timeout_seconds`` is away, and is left alone for a few seconds.
    """

    url: str | None = field(default=None, repr=False)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_seconds: float = 1.0
    _client: Any = None
    _script: Any = None
    _loop: asyncio.AbstractEventLoop | None = None
    _away_until: float = 0.0
    _said_away: bool = False
    _charges: set[asyncio.Task[Any]] = field(default_factory=set)

    async def admit(self, *, caller: Caller, job_id: int | None = None) -> Standing:
        """Count one request of ``caller``. Raises ``RequestError`` (429, ``Retry-After``, headers)."""
        own = self._buckets_of(caller)
        job = self._buckets(f"job:{job_id}", self.requests_per_minute, self.tokens_per_minute) if job_id else ()
        buckets = (*own, *job)
        costs = [1 if bucket.kind == "requests" and bucket in own else 0 for bucket in buckets]
        answer = await self._draw(buckets, costs, refuse=True)
        if answer is None:
            return UNLIMITED
        levels = tuple(
            Level(bucket=bucket, remaining=answer[2 * i + 2], reset_ms=answer[2 * i + 3])
            for i, bucket in enumerate(buckets)
        )
        standing = Standing(levels=levels, buckets=buckets)
        if answer[0]:
            raise _limited(buckets[answer[0] - 1], wait_ms=answer[1], standing=standing)
        return standing

    def charge_job(self, standing: Standing) -> None:
        """Count the request for its job too, once it was let spend it. Nobody waits for it."""
        self._charge([(bucket, 1) for bucket in standing.buckets if _of_job(bucket) and bucket.kind == "requests"])

    def charge_tokens(self, standing: Standing, *, tokens: int) -> None:
        """Count what was generated and read, ids of tokens. Nobody waits for it."""
        self._charge([(bucket, tokens) for bucket in standing.buckets if bucket.kind == "tokens" and tokens])

    async def settled(self) -> None:
        """Wait until everything charged so far is counted."""
        while self._charges:
            await asyncio.wait(set(self._charges))

    def _charge(self, charges: Sequence[tuple[Bucket, int]]) -> None:
        if not charges:
            return
        buckets, costs = zip(*charges, strict=True)
        task = asyncio.ensure_future(self._draw(buckets, costs, refuse=False))
        self._charges.add(task)
        task.add_done_callback(self._charges.discard)

    def _buckets_of(self, caller: Caller) -> tuple[Bucket, ...]:
        if caller.api_key is not None:
            return self._buckets(
                f"key:{caller.api_key}",
                caller.requests_per_minute or self.requests_per_minute,
                caller.tokens_per_minute or self.tokens_per_minute,
            )
        subject = f"address:{network_of(caller.remote_address)}"
        return self._buckets(subject, self.requests_per_minute, self.tokens_per_minute)

    def _buckets(self, subject: str, requests: int | None, tokens: int | None) -> tuple[Bucket, ...]:
        limits: Mapping[Kind, int | None] = {"requests": requests, "tokens": tokens}
        return tuple(
            Bucket(kind=kind, subject=subject, capacity=capacity) for kind, capacity in limits.items() if capacity
        )

    async def _draw(self, buckets: Sequence[Bucket], costs: Sequence[int], *, refuse: bool) -> list[int] | None:
        """The script's answer; ``None`` where nothing is limited, or nobody can be asked."""
        if not buckets or self.url is None or time.monotonic() < self._away_until:
            return None
        arguments: list[int] = [int(refuse)]
        for bucket, cost in zip(buckets, costs, strict=True):
            arguments += [bucket.capacity, cost]
        try:
            answer: list[int] = await self._connected()(keys=[bucket.key for bucket in buckets], args=arguments)
        except (RedisError, OSError, TimeoutError) as failure:
            self._away_until = time.monotonic() + _PAUSE_AFTER_FAILURE_SECONDS
            if not self._said_away:
                self._said_away = True
                logger.warning(
                    "no rate limits while Redis does not answer: %s", failure, extra={"event": "rate_limits_off"}
                )
            return None
        if self._said_away:
            self._said_away = False
            logger.info("rate limits hold again", extra={"event": "rate_limits_on"})
        return answer

    def _connected(self) -> Any:
        # A connection belongs to the event loop that it was made in.
        loop = asyncio.get_running_loop()
        if self._script is None or self._loop is not loop:
            self._loop = loop
            self._client = redis.asyncio.Redis.from_url(
                self.url or "",
                socket_timeout=self.timeout_seconds,
                socket_connect_timeout=self.timeout_seconds,
                # Once, for a connection that the server closed while it was idle; a request does not wait longer.
                retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionLost,)),
            )
            self._script = self._client.register_script(_SCRIPT)
        return self._script


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or the /64 that one customer of an IPv6 network has."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)


def _of_job(bucket: Bucket) -> bool:
    return bucket.subject.startswith("job:")


def _limited(bucket: Bucket, *, wait_ms: int, standing: Standing) -> RequestError:
    whose = {"key": "this API key", "address": "this network address", "job": "this job"}
    wait = max(1, -(-wait_ms // 1000))
    return RequestError(
        code="rate_limit_exceeded",
        message=f"The limit of {whose[bucket.subject.partition(':')[0]]} is {bucket.capacity} {bucket.kind} a minute. "
        f"Try again in {wait} s.",
        status=429,
        details={"limit": bucket.capacity, "of": bucket.kind},
        retry_after=wait,
        headers=standing.headers(),
    )
