"""Hashes, addresses and blocks as links into the chain's explorer, or plainly where there is none."""

from __future__ import annotations

from functools import lru_cache

from django.utils.html import format_html
from django.utils.safestring import SafeString

from nodes.read_only_admin import chain_value
from settlement.chain.deployment import Deployment, DeploymentError
from settlement.explorer import Explorer, explorer_of
from settlement.host_chain import NoDeployment, configured_deployment


@lru_cache(maxsize=1)
def _configured() -> Deployment | None:
    """The configured deployment's file, read once: its explorer does not change while a process runs."""
    try:
        return configured_deployment()
    except (NoDeployment, DeploymentError):
        return None


def explorer(chain_id: int | None) -> Explorer:
    """The explorer of a chain as this node is configured."""
    return explorer_of(chain_id, deployment=_configured())


def transaction_value(value: str, *, chain_id: int | None, short: bool = False) -> SafeString | str:
    """A transaction hash."""
    return chain_value(value, href=explorer(chain_id).transaction(value), short=short)


def address_value(value: str, *, chain_id: int | None, short: bool = False) -> SafeString | str:
    """An account's or contract's address."""
    return chain_value(value, href=explorer(chain_id).address(value), short=short)


def block_value(number: int, *, chain_id: int | None) -> SafeString | str:
    """A block number."""
    href = explorer(chain_id).block(number)
    if href is None:
        return str(number)
    return format_html(
        '<a class="text-primary-600 dark:text-primary-500" href="{}" target="_blank" rel="noopener noreferrer">{}</a>',
        href,
        number,
    )
