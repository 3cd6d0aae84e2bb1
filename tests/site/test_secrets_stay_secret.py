"""Hundreds of errors, each with secrets of its own in reach: none of them shows any.

Errors of the chain, the signer and the environment are free of secrets by construction and searched as
they are; what other libraries may quote is searched as it is written: in logs, pages and streams.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.app.trace import build_tracer
from django.apps import apps
from django.contrib.auth import get_user_model
from django.test import AsyncClient, Client
from eth_account import Account

from fabstir_site import embedded, health, known_secrets, logs
from fabstir_site import environment as environments
from fabstir_site.celery import app
from settlement.chain.client import ChainClient
from settlement.chain.signer import LocalSigner, UnsignedTransaction, account_of_key, account_of_keystore, host_rules
from settlement.host_chain import host_chain
from tests.chain.unruly_peer import Reply, UnrulyPeer
from tests.site.planted import Planted

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 8
STRANGER = "0x" + "99" * 20
Errors = Iterator[str]


def _raised(attempt: Callable[[], Any]) -> str:
    """What an error that must occur says for itself, its traceback and its causes included."""
    try:
        attempt()
    except Exception as error:
        return f"{error} {error!r} {error.args!r} " + "".join(traceback.format_exception(error))
    pytest.fail(f"{attempt} raised nothing")


def _of_the_chain(planted: Planted) -> Errors:
    dead = ChainClient([planted.rpc_url()], chain_id=31337, timeout_seconds=1)
    yield _raised(dead.head)
    yield _raised(dead.reported_chain_id)
    yield _raised(lambda: dead.send_raw(b"\x01"))
    yield _raised(lambda: dead.receipts(["0x" + "11" * 32] * 3))
    yield repr(dead.endpoints()) + repr(dead)
    quotes = f"bad project {planted.path_token} at {planted.rpc_url()} for {planted.query_token.upper()}"
    replies: list[Any] = [
        Reply(quotes.encode(), status=401),
        Reply(quotes.encode(), status=500),
        Reply(b"{" + quotes.encode()),
        Reply(status=302, headers={"Location": planted.rpc_url("127.0.0.1:10")}),
        Reply(cut=True),
    ]
    with UnrulyPeer() as peer:
        address = peer.url.split("/")[2]
        for reply in replies:
            peer.behave = lambda request, reply=reply: reply
            client = ChainClient([planted.rpc_url(address)], chain_id=31337, timeout_seconds=1)
            yield _raised(client.head) + repr(client.endpoints())
        peer.behave = peer.obey
        peer.results["eth_getBalance"] = {"error": {"code": -32000, "message": quotes}}
        yield _raised(lambda: client.balance(STRANGER))


def _of_the_signer(planted: Planted) -> Errors:
    account = account_of_key(planted.key)
    rules = host_rules(chain_id=1, marketplace="0x" + "aa" * 20, max_fee_per_gas=10, max_cost=10**6, daily_cost=1)
    signer = LocalSigner(account, rules=rules)
    fine: dict[str, Any] = {"chain_id": 1, "to": str(account.address), "max_fee_per_gas": 10, "nonce": 0}
    for change in ({"chain_id": 2}, {"to": STRANGER}, {"max_fee_per_gas": 11}, {}, {"nonce": -1, "max_fee_per_gas": 0}):
        fields = fine | change
        transaction = UnsignedTransaction(data=b"", value=0, gas_limit=21_000, max_priority_fee_per_gas=1, **fields)
        yield _raised(lambda transaction=transaction: signer.sign(transaction)) + repr(signer)  # type: ignore[misc]


def _of_keys(planted: Planted, folder: Path) -> Errors:
    keystore, password = folder / "keystore.json", folder / "password"
    encrypted = Account.encrypt(planted.key, planted.keystore_password, kdf="pbkdf2", iterations=2)
    password.write_text("not " + planted.keystore_password)

    def opened() -> Any:
        return account_of_keystore(keystore, password_file=password)

    for content in (json.dumps(encrypted), json.dumps(encrypted)[:-9], planted.key, json.dumps({"key": planted.key})):
        keystore.write_text(content)
        yield _raised(opened)
    password.unlink()
    yield _raised(opened)
    for wrong in (planted.key + "zz", 2 * planted.key, "0y" + planted.key):
        yield _raised(lambda wrong=wrong: account_of_key(wrong))  # type: ignore[misc]


def _of_the_environment(planted: Planted, folder: Path) -> Errors:
    good = planted.environ(folder)
    for name, value in {
        "HOST_PRIVATE_KEY": planted.key + "zz",
        "RPC_URL": f"ftp://x/{planted.path_token}",
        "REDIS_URL": f"http://:{planted.redis_password}@x:port/0",
        "DATABASE_URL": f"mysql://me:{planted.database_password}@x:99999999/0",
        "CHAIN_ID": "0",
        "HOST_KEYSTORE": str(folder / "none.json"),
    }.items():
        yield _raised(lambda name=name, value=value: environments.load(good | {name: value}))  # type: ignore[misc]


def _unforeseen(planted: Planted) -> None:
    local = {"private": planted.key, "url": planted.rpc_url()}
    try:
        raise ValueError(f"{local} {planted.keystore_password}")
    except ValueError as inner:
        raise RuntimeError(planted.django_secret, bytes.fromhex(planted.key), planted.database_password) from inner


def _of_the_log(planted: Planted, written: io.StringIO) -> Errors:
    """Careless lines, as some library might write them."""
    logger = logging.getLogger("tests.careless")
    for line, arguments in (
        ("key %s", (planted.key,)),
        ("KEY 0X%s", (planted.key.upper(),)),
        ("number %d", (int(planted.key, 16),)),
        ("%r", (planted.environ(Path("/")),)),
        ("GET %s", (planted.rpc_url(),)),
        ("redis said %(password)s", ({"password": planted.redis_password},)),
        ("authorization: Bearer %s", (planted.query_token,)),
    ):
        logger.warning(line, *arguments, extra={"event": planted.path_token, "job_id": planted.key})
        yield _taken(written)
    try:
        _unforeseen(planted)
    except RuntimeError:
        logger.exception("unforeseen")
    yield _taken(written)
    stream = io.StringIO()
    with redirect_stderr(logs.RedactedStream(stream)):  # type: ignore[type-var]  # a stream in all that is used
        try:
            _unforeseen(planted)
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
    yield stream.getvalue()


def _of_a_task(planted: Planted, written: io.StringIO) -> Errors:
    @app.task(name=f"tests.careless.{planted.key[:8]}")
    def careless(key: str, *, url: str) -> None:
        _unforeseen(planted)

    trace = build_tracer(careless.name, careless, app=app)
    trace("an-id", (planted.key,), {"url": planted.rpc_url()}, {"id": "an-id", "argsrepr": planted.key})
    yield _taken(written)


async def _page(path: str) -> str:
    response = await AsyncClient(raise_request_exception=False).get(path)
    return f"{response.status_code} {response.headers} {response.content.decode()}"


def _taken(written: io.StringIO) -> str:
    text = written.getvalue()
    written.seek(0)
    written.truncate()
    assert text.strip(), "nothing was logged"
    return text


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that is logged, in both formats, as the node's own handlers write it."""
    stream = io.StringIO()
    formatters = (logs.TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"), logs.JsonFormatter())
    root = logging.getLogger()
    with ExitStack() as stack:
        for formatter in formatters:
            handler = logging.StreamHandler(stream)
            handler.setFormatter(formatter)
            root.addHandler(handler)
            stack.callback(root.removeHandler, handler)
        yield stream


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test has a process keep secret, later tests need not."""
    monkeypatch.setattr(logs, "_known", logs._Known())


def _as_at_the_start(planted: Planted, folder: Path) -> environments.Environment:
    environment = environments.load(planted.environ(folder))
    password = folder / "keystore-password"
    password.write_text(planted.keystore_password)
    logs.keep_secret(known_secrets.secrets_of(environment) | {planted.keystore_password})
    return environment


def _assert_silent(planted: Planted, texts: Errors) -> int:
    count = 0
    for count, text in enumerate(texts, 1):
        assert planted.found_in(text) == [], f"error {count} of {texts}"
    return count


def test_errors_and_logs_show_no_secret(
    tmp_path: Path, written: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0
    for _ in range(ROUNDS):
        planted = Planted()
        by_construction = (
            _of_the_chain(planted),
            _of_the_signer(planted),
            _of_keys(planted, tmp_path),
            _of_the_environment(planted, tmp_path),
        )
        count += sum(_assert_silent(planted, errors) for errors in by_construction)
        environment = _as_at_the_start(planted, tmp_path)
        assert planted.found_in(repr(environment)) == []
        written.truncate(0)
        count += sum(_assert_silent(planted, made(planted, written)) for made in (_of_the_log, _of_a_task))
    with capsys.disabled():
        sys.stdout.write(f"\n{count} errors induced, 0 secrets found\n")
    assert count >= 200


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_environment_is_neither_copied_nor_stored(tmp_path: Path, copying: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="holds secrets"):
        copying(environments.load(Planted().environ(tmp_path)))


def test_programs_that_need_no_secret_inherit_none(tmp_path: Path) -> None:
    planted = Planted()
    command = embedded._without_secrets((sys.executable, "-c", "import os; print(dict(os.environ))"))
    environ = {"PATH": "/usr/bin:/bin", **planted.environ(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "FABSTIR_DATA_DIR" in done.stdout
    assert planted.found_in(done.stdout) == []


PAGES = ("/health", "/status", "/readyz", "/v1/version", "/v1/models", "/admin/login/", "/nowhere", "/metrics")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("debug", [False, True])
async def test_no_page_shows_a_secret(
    tmp_path: Path, written: io.StringIO, settings: Any, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    planted = Planted()
    settings.ENVIRONMENT = _as_at_the_start(planted, tmp_path)
    settings.DEBUG = debug
    settings.REDIS_URL = settings.CELERY_BROKER_URL = settings.ENVIRONMENT.redis_url
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "fabstir_site.error_pages.SecretsFilter"
    host_chain.cache_clear()
    pages = [await _page(path) for path in PAGES]
    monkeypatch.setattr(health, "git_revision", lambda: _unforeseen(planted))
    pages.append(await _page("/v1/version"))
    assert pages[-1].startswith("500")
    assert "RPC node 1" in pages[0]
    for page in (*pages, written.getvalue()):
        assert planted.found_in(page) == []
    host_chain.cache_clear()


@pytest.mark.django_db
def test_the_admin_shows_no_secret(tmp_path: Path, settings: Any, written: io.StringIO) -> None:
    planted = Planted()
    settings.ENVIRONMENT = _as_at_the_start(planted, tmp_path)
    host_chain.cache_clear()
    client = Client(raise_request_exception=False)
    client.force_login(get_user_model().objects.create_superuser(username="root", password=planted.keystore_password))
    pages = ["", *(f"{model._meta.app_label}/{model._meta.model_name}/" for model in apps.get_models())]
    shown = [client.get(f"/admin/{page}").content.decode() for page in pages]
    assert sum("Overview" in page for page in shown) > 5
    for text in (*shown, written.getvalue(), _all_texts()):
        assert planted.found_in(text) == []
    host_chain.cache_clear()


def _all_texts() -> str:
    """Every text of every row."""
    return "\n".join(
        str(value)
        for model in apps.get_models()
        # A test's own model has a table only while that test runs.
        if model._meta.managed
        for row in model._base_manager.values()
        for value in row.values()
    )


COMMANDS = [
    (("preflight",), None),
    (("verify_ledger",), "DATABASE_URL"),
    (("register_host",), "DATABASE_URL"),
    (("migrate",), None),
    (("check",), "HOST_PRIVATE_KEY"),
]


@pytest.mark.parametrize(("command", "change"), COMMANDS, ids=lambda value: str(value))
def test_no_command_shows_a_secret(tmp_path: Path, command: tuple[str, ...], change: str | None) -> None:
    planted = Planted()
    environ = planted.environ(tmp_path)
    if change == "DATABASE_URL":
        del environ["DATABASE_URL"]
    if change == "HOST_PRIVATE_KEY":
        environ["HOST_PRIVATE_KEY"] = planted.key + "zz"
    with (tmp_path / "output").open("w+") as written:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *command, "--traceback"],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", **environ},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        titles = _titles_while_it_runs(process)
        written.seek(0)
        output = written.read()
    assert output.strip() or process.returncode == 0
    assert planted.found_in(output) == []
    assert planted.found_in("\n".join(titles)) == []
    assert any("manage.py" in title for title in titles)


def _titles_while_it_runs(process: subprocess.Popen[bytes]) -> set[str]:
    """Every command line the process shows until it ends; a process that has not begun yet shows none."""
    titles = set()
    watched = psutil.Process(process.pid)
    for _ in range(6_000):
        if process.poll() is not None:
            break
        try:
            titles.add(" ".join(watched.cmdline()))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    process.wait(timeout=120)
    return titles
