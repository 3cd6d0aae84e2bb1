"""Values of environment variables: one parser for each kind.

Each takes the stripped, non-empty text and raises ``ValueError`` with the end of a sentence that
begins with the variable's name. What may hold a secret is never quoted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from jobs.access_rules import Network
from settlement.txmanager.limits import Finality


def text(raw: str) -> str:
    return raw


def names(raw: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in raw.split(","))
    if not all(names):
        # Items may be URLs with tokens: they are not shown.
        raise ValueError("must be a comma-separated list without empty items.")
    return names


def numbers(raw: str) -> tuple[int, ...]:
    return tuple(natural(part.strip()) for part in raw.split(","))


def boolean(raw: str) -> bool:
    known = {
        "1": True,
        "true": True,
        "on": True,
        "yes": True,
        "0": False,
        "false": False,
        "off": False,
        "no": False,
    }
    if raw.lower() not in known:
        raise ValueError(f"must be on or off, got {raw!r}.")
    return known[raw.lower()]


def natural(raw: str) -> int:
    if not re.fullmatch(r"[0-9]{1,30}", raw):
        raise ValueError(f"must be a whole number of 0 or more, got {raw!r}.")
    return int(raw)


def positive(raw: str) -> int:
    number = natural(raw)
    if number == 0:
        raise ValueError("must be 1 or more, got 0.")
    return number


def port(raw: str) -> int:
    number = positive(raw)
    if number > 65535:
        raise ValueError(f"must be a TCP port (1 to 65535), got {raw}.")
    return number


def checkpoint_threshold(raw: str) -> int:
    number = positive(raw)
    if number < 100:
        raise ValueError(f"must be 100 or more, since the contract refuses smaller claims; got {raw}.")
    return number


def one_of(*values: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in values:
            raise ValueError(f"must be one of {', '.join(values)}, got {raw!r}.")
        return raw

    return parse


def finality(raw: str) -> Finality:
    kinds: tuple[Finality, ...] = ("depth", "safe", "finalized")
    for kind in kinds:
        if raw == kind:
            return kind
    raise ValueError(f"must be one of {', '.join(kinds)}, got {raw!r}.")


def amounts(raw: str) -> Mapping[str, int]:
    """``native=10000000000000000,usdc=5000000``: base units for each kind of money."""
    found: dict[str, int] = {}
    for part in names(raw):
        kind, _, amount = (piece.strip() for piece in part.partition("="))
        if kind not in ("native", "usdc") or kind in found or not amount:
            raise ValueError(f"must name base units as native=…,usdc=…, each at most once; got {part!r}.")
        found[kind] = natural(amount)
    return found


def session_authorizers(raw: str) -> Mapping[str, frozenset[str]]:
    """``0xdepositor:0xsigner,…``: who may sign for a depositor, in lower case."""
    found: dict[str, frozenset[str]] = {}
    for part in names(raw):
        depositor, _, signer = part.partition(":")
        if not all(re.fullmatch(r"0x[0-9a-fA-F]{40}", address) for address in (depositor, signer)):
            raise ValueError(f"must be pairs of addresses as 0xdepositor:0xsigner, got {part!r}.")
        signers = found.get(depositor.lower(), frozenset())
        found[depositor.lower()] = signers | {signer.lower()}
    return found


def networks(raw: str) -> tuple[Network, ...]:
    """Addresses of proxies, or whole networks of them: ``127.0.0.1,10.0.0.0/8``."""
    try:
        return tuple(ip_network(part) for part in names(raw))
    except ValueError as error:
        raise ValueError(f"must be a list of IP addresses or networks: {error}.") from error


def directory(raw: str) -> Path:
    found = path(raw)
    if found.exists() and not found.is_dir():
        raise ValueError(f"must be a directory, but {found} is a file.")
    return found


def existing_file(raw: str) -> Path:
    found = path(raw)
    if not found.is_file():
        raise ValueError(f"names {found}, which is not a file.")
    return found


def path(raw: str) -> Path:
    try:
        found = Path(raw).expanduser().absolute()
        found.exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot be used as a path: {error}.") from error
    return found


def address(raw: str) -> str:
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", raw):
        raise ValueError(f"must be a contract address (0x and 40 hex digits), got {raw!r}.")
    return raw


def private_key(raw: str) -> str:
    # The value itself must not reach the message.
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", raw):
        raise ValueError("must be a private key of 64 hex digits (value not shown).")
    return raw


def url(raw: str, schemes: tuple[str, ...]) -> str:
    # URLs may carry tokens or passwords: name the scheme only.
    try:
        parts = urlsplit(raw)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL with a valid host and port (value not shown).") from None
    if parts.scheme not in schemes or not (parts.netloc or parts.path):
        raise ValueError(f"must be a URL with one of the schemes {', '.join(schemes)}, got scheme {parts.scheme!r}.")
    return raw


def http_url(raw: str) -> str:
    if not urlsplit(url(raw, ("http", "https"))).hostname:
        raise ValueError("must be a URL with a host (value not shown).")
    return raw


def model_names(raw: str) -> Mapping[str, str]:
    """``llama-8b=meta-llama/Llama-3.1-8B-Instruct,…``: the ids served here, and those of the inference server."""
    found: dict[str, str] = {}
    for part in names(raw):
        served, _, known = (piece.strip() for piece in part.partition("="))
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,120}", served) or not known or served in found:
            raise ValueError(f"must map ids of letters, digits, - and _ as id=name,…, each once; got {part!r}.")
        found[served] = known
    return found


def rpc_urls(raw: str) -> tuple[str, ...]:
    return tuple(url(part, ("http", "https")) for part in names(raw))


def redis_url(raw: str) -> str:
    return url(raw, ("redis", "rediss"))


def database_url(raw: str) -> str:
    return url(raw, ("postgres", "postgresql", "sqlite"))
