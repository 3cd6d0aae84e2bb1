"""The operator's rules of who may use the host, as the environment states them. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


class SpendingPolicy(StrEnum):
    """Who is let spend a deposit."""

    DEPOSITOR = "depositor"
    FIRST_CLAIM = "first-claim"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """``session_authorizers`` may sign for a depositor, by depositor, all in lower case. ``None``: no limit."""

    spending: SpendingPolicy
    session_authorizers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    require_api_key: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    trusted_proxies: tuple[Network, ...] = ()
