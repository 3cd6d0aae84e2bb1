"""JSON-RPC over HTTP with one node: a question or a batch of them in, its answers out.

Guarantees that an answer belongs to its question (by id), is JSON, fits into ``MAX_ANSWER_BYTES`` and
comes within the time limit; everything else is an ``EndpointFailure`` that names its fault and no URL.
Keeps one connection per thread open. Tries nothing twice and chooses nothing: ``endpoints`` does.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import requests
import urllib3.exceptions

from settlement.chain.answers import NodeRefused, refusal
from settlement.chain.rpc_urls import secret_parts, without_secrets

MAX_ANSWER_BYTES = 64 * 2**20
_CHUNK = 2**16
_LONGEST_PAUSE_SECONDS = 300.0

Question = tuple[str, Sequence[Any]]
"""A method and its parameters."""


class Fault(StrEnum):
    """What is wrong with a node, as an operator reads it."""

    UNREACHABLE = "cannot be reached"
    CUT_OFF = "ended the connection without an answer"
    TIMED_OUT = "did not answer in time"
    THROTTLED = "asks for fewer requests"
    SERVER_ERROR = "answers with a server error"
    REJECTED = "rejects requests"
    REDIRECTED = "redirects elsewhere, which is not followed"
    TOO_LARGE = "answered with more than is accepted"
    GARBLED = "answered with something that is not JSON-RPC"
    WRONG_ID = "answered another question than the one asked"
    WRONG_CHAIN = "is a node of another chain"
    STALE = "is behind the chain"


class EndpointFailure(Exception):
    """A node did not do its part. ``retry_after`` in seconds, if it said so. Never carries its URL."""

    def __init__(self, fault: Fault, detail: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(f"{fault} ({detail})" if detail else str(fault))
        self.fault = fault
        self.retry_after = retry_after


class Transport:
    """The wire to one node. Safe to use from several threads, and on either side of a fork."""

    def __init__(self, url: str, *, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._secrets = secret_parts(url)
        self._timeout = timeout_seconds
        self._clock = clock
        self._ids = itertools.count(1)
        self._local = threading.local()

    def __repr__(self) -> str:
        return "Transport(…)"

    def ask(self, method: str, params: Sequence[Any]) -> Any:
        """One result. Raises ``NodeRefused`` or ``EndpointFailure``."""
        number = next(self._ids)
        status, answer = self._post({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        if not isinstance(answer, Mapping) or ("error" not in answer and "result" not in answer):
            raise _failure_of(status) or EndpointFailure(Fault.GARBLED)
        if answer.get("id") != number and not (answer.get("id") is None and answer.get("error")):
            # Only an error may come without the id: the node did not get as far as reading it.
            raise EndpointFailure(Fault.WRONG_ID)
        outcome = self._outcome(method, answer)
        if isinstance(outcome, NodeRefused):
            if answer.get("id") is None and (failure := _failure_of(status)):
                raise failure
            raise outcome
        return outcome

    def ask_all(self, questions: Sequence[Question]) -> list[Any | NodeRefused]:
        """One request for all; the answers in the order of the questions, refusals among them as values."""
        numbers = [next(self._ids) for _ in questions]
        status, answer = self._post(
            [
                {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                for number, (method, params) in zip(numbers, questions, strict=True)
            ]
        )
        if not isinstance(answer, list):
            raise _failure_of(status) or EndpointFailure(Fault.GARBLED, "one answer to a batch")
        by_number = {entry.get("id"): entry for entry in answer if isinstance(entry, Mapping)}
        if len(answer) != len(numbers) or set(by_number) != set(numbers):
            raise EndpointFailure(Fault.WRONG_ID, "in a batch")
        return [
            self._outcome(method, by_number[number]) for number, (method, _) in zip(numbers, questions, strict=True)
        ]

    def _outcome(self, method: str, answer: Mapping[str, Any]) -> Any | NodeRefused:
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        refused = refusal(method, error)
        return NodeRefused(
            method,
            code=refused.code,
            message=without_secrets(refused.message, self._secrets),
            data=refused.data,
        )

    def _post(self, body: Any) -> tuple[int, Any]:
        """The status and the parsed answer."""
        deadline = self._clock() + self._timeout
        try:
            with self._session().post(
                self._url,
                data=json.dumps(body, separators=(",", ":")).encode(),
                headers={"Content-Type": "application/json"},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.is_redirect or 300 <= response.status_code < 400:
                    raise EndpointFailure(Fault.REDIRECTED, f"HTTP {response.status_code}")
                if response.status_code == requests.codes.too_many_requests:
                    raise EndpointFailure(
                        Fault.THROTTLED, "HTTP 429", retry_after=_seconds(response.headers.get("Retry-After"))
                    )
                text = self._read(response, deadline=deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise EndpointFailure(Fault.TIMED_OUT) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as problem:
            # No cause: its text holds the URL, and with it a token.
            raise EndpointFailure(_fault_of(problem), type(problem).__name__) from None
        try:
            return response.status_code, json.loads(text)
        except (ValueError, RecursionError):
            raise _failure_of(response.status_code) or EndpointFailure(Fault.GARBLED) from None

    def _read(self, response: requests.Response, *, deadline: float) -> bytes:
        text = bytearray()
        # read1 returns what has come: a node that sends a byte now and then cannot hold us for ever.
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            text += chunk
            if len(text) > MAX_ANSWER_BYTES:
                raise EndpointFailure(Fault.TOO_LARGE, f"over {MAX_ANSWER_BYTES} bytes")
            if self._clock() > deadline:
                raise EndpointFailure(Fault.TIMED_OUT)
        return bytes(text)

    def _session(self) -> requests.Session:
        """This thread's connection; a process that forked since gets its own."""
        kept: tuple[int, requests.Session] | None = getattr(self._local, "session", None)
        if kept is not None and kept[0] == os.getpid():
            return kept[1]
        session = requests.Session()
        # Proxies and certificates of the environment, looked up once and not with every request.
        found = session.merge_environment_settings(self._url, {}, None, None, None)
        session.proxies, session.verify, session.trust_env = found["proxies"], found["verify"], False
        self._local.session = (os.getpid(), session)
        return session


def _failure_of(status: int) -> EndpointFailure | None:
    """The failure that an HTTP status states; ``None`` for one that states none."""
    if status < 400:
        return None
    return EndpointFailure(Fault.SERVER_ERROR if status >= 500 else Fault.REJECTED, f"HTTP {status}")


def _fault_of(problem: Exception) -> Fault:
    if isinstance(problem, requests.ConnectionError):
        words = str(problem)
        # requests has one exception for both; refused and unresolved names never reached a node.
        reached = "Connection aborted" in words or "RemoteDisconnected" in words or "reset by peer" in words
        return Fault.CUT_OFF if reached else Fault.UNREACHABLE
    if isinstance(problem, (urllib3.exceptions.ProtocolError, requests.exceptions.ChunkedEncodingError)):
        return Fault.CUT_OFF
    if isinstance(problem, (urllib3.exceptions.DecodeError, requests.exceptions.ContentDecodingError)):
        return Fault.GARBLED
    return Fault.UNREACHABLE


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds or date as seconds from now; ``None`` where it says neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS) if seconds == seconds else None
