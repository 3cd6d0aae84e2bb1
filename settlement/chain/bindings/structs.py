"""Rows and enumerations that contract calls take and return.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from eth_typing import ChecksumAddress

from settlement.chain.addresses import to_checksum_address


class SessionStatus(IntEnum):
    """The contracts' SessionStatus."""

    ACTIVE = 0
    COMPLETED = 1
    TIMED_OUT = 2


@dataclass(frozen=True, slots=True)
class Claim:
    """The contracts' Claim."""

    marketplace: ChecksumAddress
    job_id: int
    host: ChecksumAddress
    tokens_before: int
    tokens_claimed: int

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Claim:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            marketplace=to_checksum_address(values[0]),
            job_id=values[1],
            host=to_checksum_address(values[2]),
            tokens_before=values[3],
            tokens_claimed=values[4],
        )

    def to_values(self) -> tuple[Any, ...]:
        """The values to encode, in the order of the ABI."""
        return (
            self.marketplace,
            self.job_id,
            self.host,
            self.tokens_before,
            self.tokens_claimed,
        )


@dataclass(frozen=True, slots=True)
class DepositLimits:
    """The contracts' DepositLimits."""

    minimum: int
    maximum: int

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> DepositLimits:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            minimum=values[0],
            maximum=values[1],
        )


@dataclass(frozen=True, slots=True)
class Model:
    """The contracts' Model."""

    repo: str
    file: str
    sha256_hash: bytes
    active: bool
    added_at: int

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Model:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            repo=values[0],
            file=values[1],
            sha256_hash=values[2],
            active=values[3],
            added_at=values[4],
        )


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The contracts' NodeInfo."""

    operator: ChecksumAddress
    staked_amount: int
    active: bool
    metadata: str
    api_url: str
    model_ids: tuple[bytes, ...]
    min_price_native: int
    min_price_stable: int

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> NodeInfo:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            operator=to_checksum_address(values[0]),
            staked_amount=values[1],
            active=values[2],
            metadata=values[3],
            api_url=values[4],
            model_ids=tuple(item for item in values[5]),
            min_price_native=values[6],
            min_price_stable=values[7],
        )


@dataclass(frozen=True, slots=True)
class SessionJob:
    """The contracts' SessionJob."""

    id: int
    requester: ChecksumAddress
    host: ChecksumAddress
    payment_token: ChecksumAddress
    deposit: int
    price_per_token: int
    tokens_used: int
    max_duration: int
    start_time: int
    last_proof_time: int
    proof_interval: int
    status: SessionStatus
    withdrawn_by_host: int
    refunded_to_user: int
    conversation_cid: str
    idle_timeout: int
    paid_to_treasury: int

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> SessionJob:
        """The row from its decoded values, in the order of the ABI."""
        return cls(
            id=values[0],
            requester=to_checksum_address(values[1]),
            host=to_checksum_address(values[2]),
            payment_token=to_checksum_address(values[3]),
            deposit=values[4],
            price_per_token=values[5],
            tokens_used=values[6],
            max_duration=values[7],
            start_time=values[8],
            last_proof_time=values[9],
            proof_interval=values[10],
            status=SessionStatus(values[11]),
            withdrawn_by_host=values[12],
            refunded_to_user=values[13],
            conversation_cid=values[14],
            idle_timeout=values[15],
            paid_to_treasury=values[16],
        )
