"""Log configuration: one line per event on standard output, as text or JSON.

Guarantees that key material in a record's message or traceback is replaced before it is written.
Prompts and completions are never logged by this project.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

# A 32-byte hex value after a word that names a secret, and the token part of an RPC URL.
_SECRETS = (
    (
        re.compile(r"(?i)((?:private|secret|password|key)[^\s=:]{0,20}[\s=:'\"]{1,4})(?:0x)?[0-9a-f]{64}\b"),
        r"\1[redacted]",
    ),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@"), r"\1[redacted]@"),
    (re.compile(r"(https?://[^/\s]+/(?:v\d+|rpc)/)[\w-]{12,}"), r"\1[redacted]"),
)


def redact(text: str) -> str:
    """``text`` without private keys, passwords in URLs and RPC tokens."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """``time LEVEL logger message``, redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line; ``extra={"event": …}`` and ids become fields. Redacted."""

    fields = ("event", "request_id", "session_id", "job_id", "checkpoint_id", "tx_hash")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        line.update({name: getattr(record, name) for name in self.fields if hasattr(record, name)})
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configuration(log_format: str) -> dict[str, Any]:
    """A ``logging.config`` dictionary. ``log_format`` is "text" or "json"."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": TextFormatter, "format": "%(asctime)s %(levelname)-7s %(name)s %(message)s"},
            "json": {"()": JsonFormatter},
        },
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
            "django.channels.server": {"level": "WARNING"},
            "daphne": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
            "web3": {"level": "WARNING"},
        },
    }
