"""Where an inference server is and how it is spoken to: what the operator configures.

Guarantees that the address's credentials and the key stay out of ``repr``. Connects to nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The server. ``models`` maps the ids that this host serves to those that the server knows.

    ``context_length`` in token ids is for servers that do not tell theirs. ``silence_seconds`` is how
    long it may say nothing during an answer; ``in_flight`` is how many requests it is given at once.
    """

    url: str = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    context_length: int | None = None
    silence_seconds: float = 120.0
    in_flight: int = 64

    @property
    def root(self) -> str:
        """Scheme, host, port and path prefix, without credentials and without ``/v1``."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{self.place}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"

    @property
    def place(self) -> str:
        """Host and port: all of the address that may be shown."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def secrets(self) -> frozenset[str]:
        """The key and the password, in the spellings in which they are sent or were given."""
        password = urlsplit(self.url).password or ""
        sent = (value.partition(" ")[2] for value in self.headers.values())
        return frozenset({self.api_key or "", password, unquote(password), *sent} - {""})

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates this host: the key, or the name and password of the address."""
        parts = urlsplit(self.url)
        if self.api_key is not None:
            return {"Authorization": f"Bearer {self.api_key}"}
        if parts.username is None:
            return {}
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
