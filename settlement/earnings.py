"""Earnings: money that moved, booked from the chain's events only.

Guarantees one row per event, so that reading a block twice books nothing twice. Amounts are base
units of the token named; gas is in wei.
"""

from __future__ import annotations

from settlement.chain.marketplaces import NATIVE_COIN, AcceptedClaim, EndedJob, LogPosition
from settlement.models import Earning, EarningKind, Receipt


def book_claim(claim: AcceptedClaim, *, deployment: str, session_id: int) -> None:
    """What a claim paid to the host and to the treasury."""
    if claim.host_position is not None:
        _book(EarningKind.HOST, claim.host_amount, claim.token, claim.host_position, deployment, session_id)
    if claim.treasury_position is not None:
        _book(
            EarningKind.TREASURY,
            claim.treasury_amount,
            claim.token,
            claim.treasury_position,
            deployment,
            session_id,
        )


def book_refund(ended: EndedJob, *, token: str, deployment: str, session_id: int) -> None:
    """What went back to the depositor when the job ended."""
    _book(EarningKind.REFUND, ended.refund, token, ended.position, deployment, session_id)


def book_gas(receipt: Receipt, *, deployment: str, session_id: int | None) -> None:
    """What a transaction of the host cost, whether or not it succeeded."""
    position = LogPosition(
        transaction_hash=receipt.attempt.hash,
        log_index=-1,
        block_number=receipt.block_number,
        block_hash=receipt.block_hash,
    )
    _book(EarningKind.GAS, receipt.fee, NATIVE_COIN, position, deployment, session_id)


def _book(
    kind: EarningKind, amount: int, token: str, position: LogPosition, deployment: str, session_id: int | None
) -> None:
    Earning.objects.get_or_create(
        transaction_hash=position.transaction_hash,
        log_index=position.log_index,
        kind=kind,
        defaults={
            "deployment": deployment,
            "session_id": session_id,
            "token": token,
            "amount": amount,
            "block_number": position.block_number,
            "block_hash": position.block_hash,
        },
    )
