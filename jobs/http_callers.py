"""Who sends an HTTP request or holds a WebSocket: the keys and tokens in its headers, and its address.

Guarantees that everything in a ``Caller`` was looked up, and that a forwarded address is believed only
where a configured proxy says it. A key or token of this host that is not valid is refused; any other
bearer text is ignored, since OpenAI clients always send one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

from django.conf import settings
from django.http import HttpRequest

from jobs import api_keys, session_authorization
from jobs.access_rules import Network
from jobs.api_keys import KEY_START, Scope
from jobs.callers import Caller
from jobs.session_authorization import TOKEN_START
from jobs.stored import stored

TOKEN_HEADER = "X-Fabstir-Session-Token"  # noqa: S105 - the name of a header
_LONGEST_SECRET = 200


async def caller_of(request: HttpRequest, *, scope: Scope | None = Scope.INFERENCE) -> Caller:
    """The sender of ``request``. Raises ``RequestError``: 401 for a key or token that is not valid, 403
    for a key that may not be used for ``scope`` (``None``: any key may).
    """
    return await _caller(
        peer=request.META.get("REMOTE_ADDR") or "",
        headers={name.lower(): value for name, value in request.headers.items()},
        scope=scope,
    )


async def caller_of_socket(scope: Mapping[str, Any], *, connection: str) -> Caller:
    """The holder of a WebSocket, from its ASGI scope (headers and ``?session_token=``). Raises as ``caller_of``."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
    client = scope.get("client") or ("",)
    caller = await _caller(peer=str(client[0]), headers=headers, scope=Scope.INFERENCE)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    if tokens := query.get("session_token"):
        caller = await with_session_token(caller, tokens[0])
    return replace(caller, connection=connection)


async def with_session_token(caller: Caller, token: object) -> Caller:
    """``caller``, having sent ``token`` as well (a ``session_token`` of a message). Raises ``RequestError``."""
    if not isinstance(token, str) or len(token) > _LONGEST_SECRET:
        raise session_authorization.unknown_token()
    found = await stored(session_authorization.authorization_of)(token)
    return replace(caller, authorizations=caller.authorizations | {found})


async def _caller(*, peer: str, headers: Mapping[str, str], scope: Scope | None) -> Caller:
    caller = Caller(
        remote_address=client_address(
            peer,
            forwarded_for=headers.get("x-forwarded-for", ""),
            trusted=settings.ENVIRONMENT.access.trusted_proxies,
        )
    )
    kind, _, secret = headers.get("authorization", "").partition(" ")
    secret = secret.strip() if kind.lower() == "bearer" else ""
    if secret.startswith(KEY_START):
        row = await stored(api_keys.recognise)(secret[:_LONGEST_SECRET], scope=scope)
        caller = replace(
            caller,
            api_key=row.pk,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
        )
    elif secret.startswith(TOKEN_START):
        caller = await with_session_token(caller, secret)
    if token := headers.get(TOKEN_HEADER.lower()):
        caller = await with_session_token(caller, token)
    return caller


def client_address(peer: str, *, forwarded_for: str, trusted: tuple[Network, ...]) -> str:
    """The network address of the client: ``peer``, or what trusted proxies say stood before them.

    Read from the right: each proxy adds whom it saw, and what stands left of the first stranger is that
    stranger's own invention.
    """
    address = peer
    for named in reversed([part.strip() for part in forwarded_for.split(",") if part.strip()]):
        if not _is_trusted(address, trusted):
            break
        address = named
    return address if _is_address(address) else peer


def _is_trusted(address: str, trusted: tuple[Network, ...]) -> bool:
    return _is_address(address) and any(ip_address(address) in network for network in trusted)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
