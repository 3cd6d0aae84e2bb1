"""The host's entry in the node registry: what it says, and how it gets there.

Guarantees that registering goes through the outbox like every other transaction, so that a restart
in the middle registers once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from django.utils import timezone
from eth_utils.address import to_checksum_address

from nodes.models import Host
from settlement.chain.bindings import NodeRegistry
from settlement.chain.bindings.structs import NodeInfo
from settlement.chain.client import ChainClient
from settlement.chain.deployment import Deployment
from settlement.chain.signer import compressed_public_key
from settlement.host_chain import HostChain, host_account
from settlement.models import Transaction, TransactionKind, TransactionState
from settlement.txmanager import outbox

_POLL_SECONDS = 0.1


class RegistrationFailed(Exception):
    """The registry did not take the host. Says why."""


def registered_node(client: ChainClient, deployment: Deployment, *, host: str) -> NodeInfo | None:
    """The registry's entry for ``host``, or ``None`` if it has none."""
    if deployment.node_registry is None:
        return None
    registry = NodeRegistry(deployment.node_registry)
    operator = to_checksum_address(host)
    if not client.call(registry.is_registered_node(operator)):
        return None
    return client.call(registry.get_node_full_info(operator))


def register(
    chain: HostChain,
    *,
    api_url: str,
    model_ids: Sequence[bytes],
    min_price_native: int,
    min_price_stable: int,
    timeout_seconds: float = 60,
) -> bool:
    """Register this host unless it is. ``True`` if it was done now. Raises ``RegistrationFailed``.

    Prices per token: wei, and base units of a stable token. The stake is the registry's minimum.
    """
    account = host_account()
    if account is None or chain.signer is None:
        raise RegistrationFailed("this node has no key to register with")
    if chain.deployment.node_registry is None:
        raise RegistrationFailed("the deployment names no NodeRegistry contract (CONTRACT_NODE_REGISTRY)")
    public_key = compressed_public_key(account)
    if registered_node(chain.client, chain.deployment, host=chain.signer.address) is not None:
        _remember(chain, api_url=api_url, public_key=public_key)
        return False
    registry = NodeRegistry(chain.deployment.node_registry)
    call = registry.register_node(
        metadata=json.dumps({"publicKey": public_key, "software": "fabstir-host"}),
        api_url=api_url,
        model_ids=model_ids,
        min_price_native=min_price_native,
        min_price_stable=min_price_stable,
        value=chain.client.call(registry.min_stake()),
    )
    key = f"register:{chain.key}:{chain.signer.address}:"
    given_up = Transaction.objects.filter(
        key__startswith=key, state__in=(TransactionState.FAILED, TransactionState.REVERTED)
    ).count()
    row = outbox.enqueue(
        key=f"{key}{given_up}",
        kind=TransactionKind.REGISTER,
        call=call,
        chain_id=chain.deployment.chain_id,
        sender=chain.signer.address,
    )
    _see_through(chain, row, timeout_seconds=timeout_seconds)
    _remember(chain, api_url=api_url, public_key=public_key)
    return True


def _see_through(chain: HostChain, row: Transaction, *, timeout_seconds: float) -> None:
    assert chain.manager is not None  # noqa: S101 - checked by the caller
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        chain.manager.broadcast()
        chain.manager.watch()
        row.refresh_from_db()
        if row.state == TransactionState.FINAL:
            return
        if row.state in (TransactionState.FAILED, TransactionState.REVERTED):
            raise RegistrationFailed(f"the registration was refused: {row.reason}")
        time.sleep(_POLL_SECONDS)
    raise RegistrationFailed(
        f"the registration is not confirmed after {timeout_seconds:.0f} s ({row.state}, {row.reason})"
    )


def _remember(chain: HostChain, *, api_url: str, public_key: str) -> None:
    assert chain.signer is not None  # noqa: S101 - checked by the caller
    Host.objects.update_or_create(
        chain_id=chain.deployment.chain_id,
        address=chain.signer.address,
        defaults={
            "api_url": api_url,
            "public_key": public_key,
            "registered": True,
            "checked_at": timezone.now(),
        },
    )
