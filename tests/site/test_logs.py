"""Secrets are replaced before a line is written, and each line says what it should."""

from __future__ import annotations

import base64
import io
import json
import logging
import logging.config
import sys

import pytest

from fabstir_site import logs

KEY = "5e" * 32


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"HOST_PRIVATE_KEY=0x{KEY}", KEY),
        (f"HOST_PRIVATE_KEY={KEY}", KEY),
        (f"private key: {KEY}", KEY),
        (f"{{'private_key': '0x{KEY}'}}", KEY),
        (f'"secret": "{KEY}"', KEY),
        ("https://user:hunter2@rpc.example/path", "hunter2"),
        ("redis://:hunter2@127.0.0.1:6379/0", "hunter2"),
        ("postgres://me:hunter2@db/fabstir", "hunter2"),
        ("connecting to rediss://me:hunter2@cache:1/0 failed", "hunter2"),
        ("https://base-sepolia.example/v2/AbCdEfGhIjKlMnOp", "AbCdEfGhIjKlMnOp"),
        ("https://mainnet.example/v3/0123456789abcdef: timed out", "0123456789abcdef"),
    ],
)
def test_a_secret_is_replaced(text: str, secret: str) -> None:
    assert secret not in logs.redact(text)
    assert "[redacted]" in logs.redact(text)
    assert logs.redact(logs.redact(text)) == logs.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "claimed 250 tokens of job 163",
        f"sent 0x{KEY}, nonce 3",
        "http://127.0.0.1:8545 answers",
        "redis://127.0.0.1:6379/0",
        "proof system at 0x2ACcc60893872A499700908889B38C5420CBcFD1",
        "mail to me@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.redact(text) == text


def _record(**extra: object) -> logging.LogRecord:
    logger = logging.getLogger("tests.logs")
    try:
        raise ValueError(f"private key {KEY}")
    except ValueError:
        trace = sys.exc_info()
    return logger.makeRecord(
        logger.name, logging.ERROR, "file", 1, "redis://:%s@h", ("hunter2",), trace, extra=extra or None
    )


def test_text_lines_are_redacted_with_their_traceback() -> None:
    line = logs.TextFormatter("%(levelname)s %(message)s").format(_record())
    assert line.startswith("ERROR redis://[redacted]@h")
    assert "ValueError" in line
    assert KEY not in line


def test_json_lines_hold_ids_and_no_secret() -> None:
    line = json.loads(logs.JsonFormatter().format(_record(event="claim_confirmed", checkpoint_id=7, other="left out")))
    assert line["message"] == "redis://[redacted]@h"
    assert (line["event"], line["checkpoint_id"], line["level"]) == ("claim_confirmed", 7, "ERROR")
    assert "other" not in line
    assert KEY not in line["traceback"]


def test_answers_that_name_their_reason_are_no_news() -> None:
    """A full node gives hundreds of 503 a second; what nobody foresaw is still told."""
    before = logging.getLogger("django.request").filters[:]
    configured = logs.configuration("text")
    try:
        logging.config.dictConfig(
            {"version": 1, "disable_existing_loggers": False, "filters": configured["filters"]}
            | {"loggers": {"django.request": configured["loggers"]["django.request"]}}
        )
        told = [
            status
            for status in (400, 404, 500, 503)
            if logging.getLogger("django.request").filter(
                logging.makeLogRecord({"name": "django.request", "status_code": status})
            )
        ]
    finally:
        logging.getLogger("django.request").filters[:] = before
    assert told == [400, 404, 500]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_configuration_can_be_used(log_format: str) -> None:
    configuration = logs.configuration(log_format)
    assert configuration["handlers"]["stdout"]["formatter"] == log_format
    logging.config.DictConfigurator(configuration)
    assert set(configuration["formatters"]) == {"text", "json"}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_known", logs._Known())
    logs.keep_secret(["0x" + KEY, "pa/ss w0rd", "tOkEn"])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "text",
    [
        f"sent {KEY}",
        f"sent 0X{KEY.upper()}",
        f"number {int(KEY, 16)}",
        f"bytes {bytes.fromhex(KEY)!r}",
        f"base64 {base64.b64encode(bytes.fromhex(KEY)).decode()}",
        "GET /pa%2Fss%20w0rd",
        "GET /?p=pa%2Fss+w0rd",
        "said pa/ss w0rd",
        f"basic {base64.b64encode(b'pa/ss w0rd').decode()}",
        "for TOKEN or token",
    ],
)
def test_a_known_secret_is_replaced_in_every_spelling(text: str) -> None:
    assert logs.redact(text).split(" ", 1)[1] != text.split(" ", 1)[1]
    assert "[redacted]" in logs.redact(text)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("GET /v1?apikey=abc123&x=1", "abc123"),
        ("Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
        ("sent bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ('{"crypto": {"ciphertext": "' + "ab" * 32 + '"}}', "ab" * 32),
    ],
)
def test_what_looks_like_a_secret_is_replaced_though_nobody_knows_it(text: str, secret: str) -> None:
    assert secret not in logs.redact(text)
    assert logs.redact(logs.redact(text)) == logs.redact(text)


@pytest.mark.usefixtures("known")
def test_what_is_printed_past_the_loggers_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in range(2):
        logs.guard_standard_error()
    sys.stderr.writelines([f"key {KEY}\n", "fine\n"])
    sys.stderr.flush()
    assert stream.getvalue() == "key [redacted]\nfine\n"
