"""The transfer of a sweep: where it goes, the call that makes it, and what the chain says it moved.

Guarantees that call and booking are of the recipient that the sweep was asked for, whatever address is
configured by then; and tells whether that is still the operator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from eth_utils.address import to_checksum_address

from settlement import earnings
from settlement.chain.bindings import TestUSDC
from settlement.chain.bindings.events import Transfer
from settlement.chain.contracts import Call, FunctionSpec, nothing
from settlement.chain.marketplace import NATIVE_COIN, LogPosition
from settlement.host_chain import HostChain
from settlement.models import Receipt, Withdrawal


def is_wanted(row: Withdrawal) -> bool:
    """Whether the recipient is the operator's address still: another, or none, may be configured meanwhile."""
    target = settings.ENVIRONMENT.sweep_to
    return target is not None and row.recipient == target.lower()


def objection(row: Withdrawal) -> str:
    """Why a sweep that is not wanted any more is not sent."""
    target = settings.ENVIRONMENT.sweep_to
    now = "is not set any more" if target is None else f"is {target} now"
    return f"it was to go to {row.recipient or 'an address that was not written down'}; FABSTIR_SWEEP_TO {now}"


def call(row: Withdrawal) -> Call[Any]:
    """What moves the money."""
    assert row.recipient and row.amount is not None  # noqa: S101 - sweeps are recorded with both
    recipient = to_checksum_address(row.recipient)
    if row.tokens == [NATIVE_COIN]:
        return Call(to=recipient, data=b"", value=row.amount, function=FunctionSpec("", (), ()), decoder=nothing)
    return TestUSDC(to_checksum_address(row.tokens[0])).transfer(to=recipient, value=row.amount)


def book(chain: HostChain, row: Withdrawal, *, receipt: Receipt, logs: Iterable[Mapping[str, Any]]) -> int:
    """Book what a final transfer moved; returns how many movements that were.

    Native coin moves without an event: the successful receipt of our own transfer stands for it.
    """
    token = str(row.tokens[0])
    moves = (
        [(row.amount or 0, earnings.position_of(receipt))]
        if token == NATIVE_COIN
        else _transfers(logs, token=token, sender=chain.host or "", receiver=row.recipient)
    )
    for amount, position in moves:
        earnings.book_sweep(amount, token=token, position=position, deployment=chain.key, at=receipt.block_time)
    return len(moves)


def _transfers(
    logs: Iterable[Mapping[str, Any]], *, token: str, sender: str, receiver: str
) -> list[tuple[int, LogPosition]]:
    found = []
    for log in logs:
        if str(log["address"]).lower() != token or str(log["topics"][0]).lower() != "0x" + Transfer.topic.hex():
            continue
        seen = Transfer.decode(log)
        if (seen.event.from_.lower(), seen.event.to.lower()) == (sender.lower(), receiver.lower()):
            position = LogPosition(
                transaction_hash="0x" + seen.transaction_hash.hex(),
                log_index=seen.log_index,
                block_number=seen.block_number,
                block_hash="0x" + seen.block_hash.hex(),
            )
            found.append((seen.event.value, position))
    return found
