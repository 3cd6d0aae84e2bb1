"""The chain, the broker and the database killed with SIGKILL under a node of real processes that settles."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from settlement.chain.bindings.structs import SessionStatus
from tests.faults.chain_process import ChainProcess
from tests.faults.postgres_process import PostgresProcess, server_binaries
from tests.flows.flow import prompt_body
from tests.flows.node import ROOT, Node, drop_node, frames_until, make_node, wait_for

# Slow and of real processes: .ci/run runs them once, with the tests that need its services.
pytestmark = [pytest.mark.timeout(300), pytest.mark.server]
PRICE = 2000
ROUNDS = 3


@pytest.fixture
def node(chain_process: ChainProcess) -> Iterator[Node]:
    node = _make(chain_process)
    yield node
    drop_node(node)


def _make(chain: ChainProcess) -> Node:
    node = make_node(chain.url, replicas=2)
    node.environ["FABSTIR_RESEND_AFTER_SECONDS"] = "2"
    return node


def _checkpoints(node: Node) -> int:
    return int(node.rows("SELECT count(*) FROM settlement_checkpoint")[0][0])


def _attend(node: Node) -> None:
    """The time passes for which a row waits after a failure or with a dead worker.

    No process that a test did not kill may have ended by what it killed.
    """
    ended = [name for name, process in node.processes.items() if process.poll() is not None]
    assert not ended, f"{ended} ended:\n{node.log(ended[0])[-3000:]}"
    for table in ("settlement_checkpoint", "settlement_transaction"):
        query = f"UPDATE {table} SET retry_at = created_at WHERE retry_at > created_at"
        if node.postgres:
            with psycopg.connect(node.url) as connection:
                connection.execute(query)
        else:
            with sqlite3.connect(node.data_dir / "fabstir.sqlite3", timeout=20) as database:
                database.execute(query)


def _settle_through(node: Node, interrupt: Callable[[], None], *, job_id: int) -> None:
    """Three prompts of 130 tokens, each followed by an interruption while its claim is on its way, and the end."""
    total = 0
    for _ in range(ROUNDS):
        before = _checkpoints(node)
        total += node.post(prompt_body(130, job_id=job_id)).json()["tokens_used"]
        wait_for(lambda before=before: _attend(node) or _checkpoints(node) > before, "a checkpoint")
        interrupt()
        wait_for(lambda: node.post(prompt_body(1)).ok, "the node to serve again")
    with node.socket() as socket:
        socket.send(json.dumps({"type": "session_init", "session_id": f"{job_id}n"}))
        frames_until(socket, "session_init_ack")
        socket.send(json.dumps({"type": "session_end"}))
        frames_until(socket, "session_end_ack")
    _assert_paid_once(node, job_id=job_id, total=total)


def _assert_paid_once(node: Node, *, job_id: int, total: int) -> None:
    session = "SELECT state, tokens_tracked, tokens_claimed FROM jobs_session WHERE job_id IS NOT NULL"
    told = "SELECT state, reason, retry_at FROM settlement_checkpoint UNION ALL SELECT state, reason, retry_at FROM %s"
    wait_for(
        lambda: _attend(node) or node.rows(session) == [("completed", total, total)],
        lambda: f"{node.rows(session)}: {node.rows(told % 'settlement_transaction')}\n{node.log('worker')[-3000:]}",
    )
    job = node.world.world.job(job_id)
    assert (job.tokens_used, job.withdrawn_by_host) == (total, total * PRICE * 9 // 10)
    assert (job.status, job.refunded_to_user) == (SessionStatus.COMPLETED, job.deposit - total * PRICE)
    proofs = [proof for (proof,) in node.rows("SELECT proof_hash FROM settlement_checkpoint")]
    assert len(set(proofs)) == len(proofs)
    count = node.world.world.w3.eth.get_transaction_count(node.world.account.address)
    # The host's registration is the one transaction that the node did not send.
    assert count - 1 == node.rows("SELECT count(*) FROM settlement_receipt")[0][0]
    verify = [sys.executable, "manage.py", "verify_ledger"]
    wait_for(
        lambda: subprocess.run(verify, cwd=ROOT, env=node.environ, capture_output=True, check=False).returncode == 0,
        lambda: subprocess.run(verify, cwd=ROOT, env=node.environ, capture_output=True, text=True).stdout,
    )


def test_a_killed_broker_loses_no_token(node: Node) -> None:
    node.start("broker", "web", "worker", "beat")
    job_id = node.world.world.open_usdc(deposit=10_000_000, price=PRICE)

    def interrupt() -> None:
        node.kill("broker")
        node.start("broker")

    _settle_through(node, interrupt, job_id=job_id)


def test_a_chain_that_is_killed_and_loses_its_last_blocks_pays_every_token_once(
    node: Node, chain_process: ChainProcess
) -> None:
    job_id = node.world.world.open_usdc(deposit=10_000_000, price=PRICE)
    chain_process.wait_until_written()
    node.start("broker", "web", "worker", "beat")

    def interrupt() -> None:
        chain_process.kill()
        chain_process.start()

    _settle_through(node, interrupt, job_id=job_id)


def test_a_node_whose_every_process_is_killed_together_loses_no_token(node: Node) -> None:
    names = ("broker", "web", "worker", "beat")
    node.start(*names)
    job_id = node.world.world.open_usdc(deposit=10_000_000, price=PRICE)

    def interrupt() -> None:
        for name in names:
            node.kill(name)
        node.start(*names)

    _settle_through(node, interrupt, job_id=job_id)


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresProcess]:
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed that a test could start and kill")
    # Not pytest's own folder: the server's user may not enter that.
    folder = Path(tempfile.mkdtemp(prefix="fabstir-postgres-"))
    folder.chmod(0o755)
    server = PostgresProcess(binaries=binaries, folder=folder / "cluster")
    server.create()
    server.start()
    monkeypatch.setenv("DATABASE_URL", server.url)
    yield server
    server.kill()
    shutil.rmtree(folder)


def test_a_killed_postgresql_loses_no_token(postgres: PostgresProcess, chain_process: ChainProcess) -> None:
    node = _make(chain_process)
    try:
        node.start("broker", "web", "worker", "beat")
        job_id = node.world.world.open_usdc(deposit=10_000_000, price=PRICE)

        def interrupt() -> None:
            postgres.kill()
            postgres.start()

        _settle_through(node, interrupt, job_id=job_id)
    finally:
        drop_node(node)
