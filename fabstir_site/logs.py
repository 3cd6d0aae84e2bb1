"""Log configuration: one line per event on standard output, as text or JSON.

Guarantees that this node's own secrets, in any of their spellings, and whatever looks like key material
are replaced before a line is written, be it by a logger, as a traceback, or straight to standard error.
Prompts and completions are never logged by this project.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TextIO

from fabstir_site.known_secrets import HIDDEN, spellings
from jobs import log_ids

# A 32-byte hex value after a word that names a secret, and the token part of an RPC URL.
_SECRETS = (
    (
        re.compile(r"(?i)((?:private|secret|password|key)[^\s=:]{0,20}[\s=:'\"]{1,4})(?:0x)?[0-9a-f]{64}\b"),
        r"\1[redacted]",
    ),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@"), r"\1[redacted]@"),
    (re.compile(r"(https?://[^/\s]+/(?:v\d+|rpc)/)[\w-]{12,}"), r"\1[redacted]"),
    (re.compile(r"(?i)([?&](?:api[-_]?key|key|token|access[-_]?token|secret|auth)=)[^&\s'\"]+"), r"\1[redacted]"),
    (
        re.compile(
            r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)"
            r"(?!(?:bearer|basic|token)\s)[^\s'\",;\[]+"
        ),
        r"\1[redacted]",
    ),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/-]{12,}=*"), r"\1[redacted]"),
    (re.compile(r"(?i)(['\"](?:ciphertext|mac|salt)['\"]\s*:\s*['\"])[0-9a-f]{32,}"), r"\1[redacted]"),
)
_NEVER = re.compile(r"(?!)")


class _Known:
    """The secrets that this process knows of, as one pattern."""

    def __init__(self) -> None:
        self.spellings: frozenset[str] = frozenset()
        self.pattern = _NEVER


_known = _Known()


def keep_secret(secrets: Iterable[str]) -> None:
    """From here on, replace these values wherever this process writes them, in every spelling."""
    _known.spellings |= {spelling for secret in secrets for spelling in spellings(secret)}
    longest_first = sorted(_known.spellings, key=len, reverse=True)
    _known.pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if longest_first else _NEVER


def redact(text: str) -> str:
    """``text`` without this node's secrets, and without what looks like a key, a password or a token."""
    text = _known.pattern.sub(HIDDEN, text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class RedactedStream:
    """A text stream whose writes are redacted: for what is printed past the loggers."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        self._inner.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def guard_standard_error() -> None:
    """Tracebacks, refusals of commands and warnings go to standard error without asking a logger."""
    if not isinstance(sys.stderr, RedactedStream):
        sys.stderr = RedactedStream(sys.stderr)


class TextFormatter(logging.Formatter):
    """``time LEVEL logger message``, redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line; ``extra={"event": …}`` and ids become fields. Redacted.

    What a line does not say itself is taken from the task that wrote it: its request, session and job.
    """

    fields = ("event", "request_id", "session_id", "job_id", "checkpoint_id", "tx_hash", "trace_id")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(log_ids.known())
        line.update({name: getattr(record, name) for name in self.fields if hasattr(record, name)})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # Value by value: in the finished JSON, quotes are escaped and patterns would miss.
        return json.dumps({name: _redacted(value) for name, value in line.items()}, ensure_ascii=False)


def _redacted(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else redact(str(value))


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Django's about an answer tells the operator anything.

    A 503 is an answer that names its reason; a full node gives hundreds a second, and ``/metrics`` counts them.
    """
    return getattr(record, "status_code", None) != HTTPStatus.SERVICE_UNAVAILABLE


def configuration(log_format: str) -> dict[str, Any]:
    """A ``logging.config`` dictionary. ``log_format`` is "text" or "json"."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": TextFormatter, "format": "%(asctime)s %(levelname)-7s %(name)s %(message)s"},
            "json": {"()": JsonFormatter},
        },
        "filters": {"news": {"()": lambda: is_news}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": log_format,
            }
        },
        "root": {"handlers": ["stdout"], "level": "INFO"},
        "loggers": {
            # One line per request or task drowns the money events.
            "django.request": {"filters": ["news"]},
            "django.channels.server": {"level": "WARNING"},
            "daphne": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
            "web3": {"level": "WARNING"},
        },
    }
