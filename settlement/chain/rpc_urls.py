"""What of an RPC node's URL is secret: providers put their tokens into paths, queries, user names and hosts.

Guarantees that a text which quotes a token, as providers' own error messages do, can be shown once it went
through ``without_secrets``. Knows only the URL it is given; patterns for unknown ones are the log's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

HIDDEN = "[redacted]"
# Shorter parts are words of an address ("v2", "rpc"), and replacing them would maim every message.
_SHORTEST_TOKEN = 8
_LONGEST_WORD = 20
_WORD = re.compile(r"[a-z]+(-[a-z]+)*")


def secret_parts(url: str) -> frozenset[str]:
    """The parts of a URL that may be tokens or passwords, as written and unquoted."""
    try:
        parts = urlsplit(url)
        credentials = [part for part in (parts.username, parts.password) if part]
    except ValueError:
        # No URL at all: all of it is hidden.
        return frozenset({url})
    found = {part for part in credentials if part == parts.password or _may_be_a_token(part)}
    found |= {part for part in parts.path.split("/") if _may_be_a_token(part)}
    for label in (parts.hostname or "").split("."):
        # As QuickNode does it; a name made of words is a name.
        if len(label) >= 16 and re.search(r"\d", label) and _may_be_a_token(label):
            found.add(label)
    if parts.fragment:
        found.add(parts.fragment)
    values = {piece.partition("=")[2] for piece in parts.query.split("&")}
    found |= {value for value in values if _may_be_a_token(value)}
    return frozenset(form for part in found for form in (part, unquote(part)) if len(form) > 2)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every secret replaced, the longest first, whatever the case of its letters."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret.lower() in text.lower():
            text = re.sub(re.escape(secret), HIDDEN, text, flags=re.IGNORECASE)
    return text


def _may_be_a_token(part: str) -> bool:
    return len(part) >= _SHORTEST_TOKEN and not (len(part) < _LONGEST_WORD and _WORD.fullmatch(part))
