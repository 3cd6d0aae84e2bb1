"""The spelling of addresses that contracts' bindings take: mixed case, whose letters are a checksum (EIP-55).

Remembers what it spelled: a host meets few addresses, each many times, and every spelling costs a hash.
"""

from __future__ import annotations

from functools import lru_cache

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address as spell


@lru_cache(maxsize=8192)
def to_checksum_address(address: str) -> ChecksumAddress:
    """Raises ``ValueError`` for what is no address."""
    return spell(address)
