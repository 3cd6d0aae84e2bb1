"""Secrets that a test plants in a node's environment, and the search for them in whatever comes out."""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote


def _password() -> str:
    # With characters that URLs, JSON and shells spell otherwise.
    return f"Pw/{secrets.token_hex(8)}+&é"


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One environment's secrets; no two environments share any."""

    key: str = field(default_factory=lambda: secrets.token_hex(32))
    path_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    query_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    rpc_password: str = field(default_factory=_password)
    database_password: str = field(default_factory=_password)
    redis_password: str = field(default_factory=_password)
    keystore_password: str = field(default_factory=_password)
    django_secret: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    def rpc_url(self, address: str = "127.0.0.1:9") -> str:
        """A node's URL with a token everywhere that a provider may put one; nobody listens on port 9."""
        user = f"node:{quote(self.rpc_password, safe='')}"
        return f"http://{user}@{address}/v3/{self.path_token}?apikey={self.query_token}"

    def environ(self, folder: Path) -> dict[str, str]:
        """What an operator would set, with nothing that answers."""
        return {
            "FABSTIR_DATA_DIR": str(folder),
            "FABSTIR_SECRET_KEY": self.django_secret,
            "HOST_PRIVATE_KEY": "0x" + self.key,
            "RPC_URL": self.rpc_url(),
            "CHAIN_ID": "84532",
            "FABSTIR_RPC_TIMEOUT_SECONDS": "1",
            "REDIS_URL": f"redis://:{quote(self.redis_password, safe='')}@127.0.0.1:9/0",
            "DATABASE_URL": f"postgres://host:{quote(self.database_password, safe='')}@127.0.0.1:9/fabstir",
        }

    def found_in(self, text: str) -> list[str]:
        """The names of the secrets that ``text`` gives away, in whatever spelling."""
        lowered = text.lower()
        return [
            name
            for name in self.__dataclass_fields__
            if any(spelling.lower() in lowered for spelling in _spellings(getattr(self, name)))
        ]


def _spellings(secret: str) -> set[str]:
    raw = secret.encode()
    found = {secret, quote(secret, safe=""), base64.b64encode(raw).decode().rstrip("="), ascii(secret)[1:-1]}
    if re.fullmatch("[0-9a-f]{64}", secret):
        key = bytes.fromhex(secret)
        found |= {str(int(secret, 16)), base64.b64encode(key).decode().rstrip("="), repr(key)[2:-1]}
    return found
