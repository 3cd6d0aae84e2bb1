"""Which values of this node are secret, and how else they may be spelled.

Guarantees that a key is found with and without its prefix, as a number, as bytes, in base64 and in a URL.
Reads the files that hold secrets and nothing else; one that cannot be read is not this module's to report.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit

from fabstir_site.environment import Environment
from settlement.chain.rpc_urls import HIDDEN, secret_parts

__all__ = ["HIDDEN", "secrets_of", "spellings"]

# What is shorter is part of other words, and no secret to speak of.
_SHORTEST = 5


def secrets_of(environment: Environment) -> frozenset[str]:
    """Keys, passwords and tokens that this environment names, directly or by file."""
    found = {environment.secret_key, environment.host_private_key or ""}
    for url in environment.rpc_urls:
        found |= secret_parts(url)
    for address in (environment.database_url, environment.redis_url, environment.otlp_endpoint):
        password = urlsplit(address).password if address else None
        if password:
            found |= {password, unquote(password)}
    if environment.engine_upstream is not None:
        found |= environment.engine_upstream.secrets
    for path in (environment.host_keystore_password_file, environment.host_key_file, environment.admin_password_file):
        found |= set(_content(path))
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST)


def spellings(secret: str) -> frozenset[str]:
    """A secret as it may appear in a text."""
    found = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    found |= set(_base64(secret.encode()))
    digits = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{64})", secret)
    if digits:
        key = bytes.fromhex(digits[1])
        found |= {digits[1], "0x" + digits[1], str(int(digits[1], 16)), repr(key)[2:-1], *_base64(key)}
    return frozenset(found)


def _base64(raw: bytes) -> Iterator[str]:
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        yield encoded.decode()
        yield encoded.decode().rstrip("=")


def _content(path: Path | None) -> Iterator[str]:
    if path is None:
        return
    try:
        yield path.read_text().strip()
    except (OSError, ValueError):
        # Not there yet, or not to be read: then this process does not know it either.
        return
