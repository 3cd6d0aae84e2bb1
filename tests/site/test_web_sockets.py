"""The end of a connection whose peer no longer reads: without a server, on a clock of the test's own."""

from __future__ import annotations

import pytest
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fabstir_site import web_sockets
from fabstir_site.web_sockets import FlowControlledSocket


class Unread:
    """A transport whose buffer nobody empties: it closes only when it is aborted."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def loseConnection(self) -> None:
        self.asked.append("lose")

    def abortConnection(self) -> None:
        self.asked.append("abort")

    def unregisterProducer(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(web_sockets, "reactor", clock)
    return clock


def opened() -> FlowControlledSocket:
    socket = FlowControlledSocket()
    socket.transport = Unread()
    socket.state, socket.wasClean = WebSocketProtocol.STATE_OPEN, True
    return socket


def test_a_connection_that_was_closed_with_unread_output_is_dropped_in_the_end(clock: Clock) -> None:
    socket = opened()
    socket.dropConnection()
    clock.advance(4.9)
    assert socket.transport.asked == ["lose"]
    clock.advance(0.1)
    assert socket.transport.asked == ["lose", "abort"]


def test_a_connection_that_has_ended_in_time_is_left_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebSocketProtocol, "connectionLost", lambda socket, reason: None)
    socket = opened()
    socket.dropConnection()
    socket.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []


def test_a_connection_that_is_aborted_needs_no_second_time(clock: Clock) -> None:
    socket = opened()
    socket.dropConnection(abort=True)
    assert (socket.transport.asked, clock.getDelayedCalls()) == (["abort"], [])
