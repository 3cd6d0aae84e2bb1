"""Withdrawals: earnings from the HostEarnings contract to the host, and from there to the operator's address.

Guarantees that a request is sent once however often it is made; that nothing is sent whose gas is worth
more than the operator allows, unless forced; that a withdrawal is booked from the contract's event only;
that a sweep goes to, and is booked for, the address it was asked for, or is given up before it is signed;
and that every step can be taken at any moment, by any worker, after any crash. Amounts are base units,
costs are wei.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from settlement import checkpoints, earnings, sweep_transfers
from settlement.amounts import Unit, format_amount, unit_of
from settlement.chain.client import CallReverted
from settlement.chain.contracts import Call
from settlement.chain.marketplace import NATIVE_COIN
from settlement.host_chain import HostChain
from settlement.models import (
    Checkpoint,
    CheckpointState,
    EarningKind,
    EarningTotal,
    Receipt,
    Transaction,
    TransactionKind,
    TransactionState,
    Withdrawal,
    WithdrawalKind,
    WithdrawalState,
)
from settlement.models.earning import ALL
from settlement.policy import WEI_PER_COIN
from settlement.txmanager import commands, outbox, quotes

logger = logging.getLogger(__name__)

_ACTOR = "withdrawals"


class WithdrawalRefused(Exception):
    """A withdrawal that is not made. Says why, and what would change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the contract holds for the host in a token, and how much of it would be moved (base units)."""

    token: str
    unit: Unit
    balance: int
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a withdrawal would move and cost, as the chain stands now. Costs in wei.

    ``value`` is what it moves in wei, ``None`` where a token has no known price; ``net_native`` what is
    left of native coin after the expected gas. ``objection`` says why it would be refused; a force
    overrules it where ``forceable``.
    """

    holdings: tuple[Holding, ...]
    gas: int
    expected_cost: int
    worst_cost: int
    value: int | None
    net_native: int
    objection: str
    forceable: bool


def tokens_named(chain: HostChain, name: str) -> tuple[str, ...]:
    """The tokens that ``native``, ``usdc``, an address or ``all`` means. Raises ``WithdrawalRefused``."""
    usdc = None if chain.deployment.usdc is None else chain.deployment.usdc.lower()
    if name == "native":
        return (NATIVE_COIN,)
    if name == "usdc" and usdc is not None:
        return (usdc,)
    if name == "all":
        credited = EarningTotal.objects.filter(deployment=chain.key, scope=ALL, kind=EarningKind.HOST)
        known = {NATIVE_COIN, *([usdc] if usdc else []), *credited.values_list("token", flat=True)}
        return tuple(sorted(known))
    if name.startswith("0x") and len(name) == 42 and all(digit in "0123456789abcdef" for digit in name[2:].lower()):
        return (name.lower(),)
    raise WithdrawalRefused(f"{name!r} is no token here: name native, usdc, all or a token's address (0x…).")


def preview(chain: HostChain, *, tokens: Sequence[str], amount: int | None = None) -> Preview:
    """What withdrawing ``tokens`` would do; ``amount`` (one token only) or everything. Asks the chain."""
    signer = chain.signer
    if signer is None:
        raise WithdrawalRefused("This node has no host key, so it cannot withdraw. Set HOST_KEYSTORE.")
    if amount is not None and (len(tokens) != 1 or amount < 1):
        raise WithdrawalRefused("An amount is 1 or more, and goes with exactly one token.")
    holdings = tuple(_holding(chain, token, amount=amount, host=signer.address) for token in tokens)
    native = sum(holding.amount for holding in holdings if holding.token == NATIVE_COIN)
    value = _value(chain, holdings)
    short = next((holding for holding in holdings if holding.amount > holding.balance), None)
    if short is not None:
        shown = format_amount(short.balance, short.unit)
        return _impossible(holdings, value=value, objection=f"HostEarnings holds {shown} for this host, not more.")
    if not any(holding.amount for holding in holdings):
        return _impossible(holdings, value=value, objection="HostEarnings holds nothing of these tokens for this host.")
    call = _withdraw_call(chain, tokens=[holding.token for holding in holdings if holding.amount], amount=amount)
    try:
        quote = quotes.quote(chain.client, call, sender=signer.address, limits=chain.limits)
    except CallReverted as reverted:
        return _impossible(holdings, value=value, objection=f"The contract would refuse it: {reverted}")
    ratio = settings.ENVIRONMENT.value_to_gas_ratio
    poor = value is not None and value < ratio * quote.expected_cost
    objection = (
        f"It moves {value} wei worth for about {quote.expected_cost} wei of gas; less than {ratio} times the gas is "
        "not worth it (FABSTIR_VALUE_TO_GAS_RATIO). Wait for more earnings or lower fees, or force it."
        if poor
        else ""
    )
    return Preview(
        holdings=holdings,
        gas=quote.gas,
        expected_cost=quote.expected_cost,
        worst_cost=quote.worst_cost,
        value=value,
        net_native=native - quote.expected_cost,
        objection=objection,
        forceable=poor,
    )


def _impossible(holdings: tuple[Holding, ...], *, value: int | None, objection: str) -> Preview:
    return Preview(
        holdings=holdings,
        gas=0,
        expected_cost=0,
        worst_cost=0,
        value=value,
        net_native=0,
        objection=objection,
        forceable=False,
    )


def _holding(chain: HostChain, token: str, *, amount: int | None, host: str) -> Holding:
    balance = chain.marketplace.withdrawable(chain.client, host=host, token=token)
    return Holding(token=token, unit=_unit(chain, token), balance=balance, amount=balance if amount is None else amount)


def _unit(chain: HostChain, token: str) -> Unit:
    return unit_of(token, is_usdc=chain.deployment.usdc is not None and token == chain.deployment.usdc.lower())


def _value(chain: HostChain, holdings: Iterable[Holding]) -> int | None:
    """In wei; ``None`` if something that would be moved has no known price."""
    price = settings.ENVIRONMENT.native_price_usdc
    total = 0
    for holding in holdings:
        if holding.token == NATIVE_COIN:
            total += holding.amount
        elif holding.unit.symbol == "USDC" and price is not None:
            total += holding.amount * WEI_PER_COIN // price
        elif holding.amount:
            return None
    return total


def request(
    chain: HostChain,
    *,
    tokens: Sequence[str],
    request_key: str,
    actor: str,
    amount: int | None = None,
    force: bool = False,
) -> Withdrawal:
    """Withdraw once for ``request_key``; asked again, returns the same row. Raises ``WithdrawalRefused``."""
    wanted = sorted(token.lower() for token in tokens)
    known = Withdrawal.objects.filter(deployment=chain.key, request_key=request_key).first()
    if known is None:
        found = preview(chain, tokens=wanted, amount=amount)
        if found.objection and not (force and found.forceable):
            raise WithdrawalRefused(found.objection)
        moved = [holding.token for holding in found.holdings if holding.amount]
        known = record(
            chain,
            kind=WithdrawalKind.WITHDRAW,
            tokens=moved,
            amount=amount,
            request_key=request_key,
            actor=actor,
            forced=force,
        )
    elif known.amount != amount or not set(known.tokens) <= set(wanted):
        raise WithdrawalRefused(f"The request {request_key} already stands for another withdrawal ({known}).")
    if known.state == WithdrawalState.REQUESTED:
        _enqueue(chain, known)
        known.refresh_from_db()
    return known


def record(
    chain: HostChain,
    *,
    kind: WithdrawalKind,
    tokens: Sequence[str],
    amount: int | None,
    request_key: str,
    actor: str,
    recipient: str = "",
    forced: bool = False,
) -> Withdrawal:
    """Write a request down, once for its key; a sweep with its recipient.

    Raises ``WithdrawalRefused`` while another is under way.
    """
    try:
        with transaction.atomic():
            row, _ = Withdrawal.objects.get_or_create(
                deployment=chain.key,
                request_key=request_key,
                defaults={
                    "kind": kind,
                    "tokens": list(tokens),
                    "amount": amount,
                    "recipient": recipient.lower(),
                    "requested_by": actor,
                    "forced": forced,
                },
            )
    except IntegrityError as refused:
        raise WithdrawalRefused("Another one is under way. Wait until it is final, or cancel it.") from refused
    return row


def advance(chain: HostChain) -> int:
    """Take every unfinished withdrawal one step further; returns how many moved."""
    if chain.signer is None:
        return 0
    unfinished = Withdrawal.objects.unfinished().filter(deployment=chain.key).select_related("transaction")
    return sum(
        _enqueue(chain, row) if row.state == WithdrawalState.REQUESTED else _follow(chain, row)
        for row in unfinished.order_by("id")
    )


def _enqueue(chain: HostChain, row: Withdrawal) -> bool:
    assert chain.signer is not None  # noqa: S101 - requests are made and advanced with a signer only
    sweeps = row.kind == WithdrawalKind.SWEEP
    if sweeps and not sweep_transfers.is_wanted(row):
        return _move(row, to_state=WithdrawalState.FAILED, reason=sweep_transfers.objection(row))
    call = sweep_transfers.call(row) if sweeps else _withdraw_call(chain, tokens=row.tokens, amount=row.amount)
    with transaction.atomic():
        sent = outbox.enqueue(
            key=f"{row.kind}:{chain.key}:{row.pk}",
            kind=TransactionKind.SWEEP if sweeps else TransactionKind.WITHDRAW,
            call=call,
            chain_id=chain.deployment.chain_id,
            sender=chain.signer.address,
        )
        return _move(row, to_state=WithdrawalState.SENT, transaction=sent)


def _withdraw_call(chain: HostChain, *, tokens: Sequence[str], amount: int | None) -> Call[None]:
    if len(tokens) == 1:
        return chain.marketplace.withdraw(token=tokens[0], amount=amount)
    return chain.marketplace.withdraw_many(tokens)


def _follow(chain: HostChain, row: Withdrawal) -> bool:
    sent = row.transaction
    assert sent is not None  # noqa: S101 - a sent withdrawal has a transaction (constraint of that name)
    if sent.state in (TransactionState.FAILED, TransactionState.REVERTED, TransactionState.CANCELLED):
        reason = f"{sent.state}: {sent.revert or sent.reason}" if sent.revert or sent.reason else sent.state
        return _move(row, to_state=WithdrawalState.FAILED, reason=reason)
    if sent.state != TransactionState.FINAL:
        return _stop_if_unsigned(row, sent)
    receipt = Receipt.objects.select_related("attempt").get(transaction=sent)
    mined = chain.client.receipt(receipt.attempt.hash)
    if mined is None:
        return False
    booked = (
        sweep_transfers.book(chain, row, receipt=receipt, logs=mined.logs)
        if row.kind == WithdrawalKind.SWEEP
        else apply_events(chain, mined.logs)
    )
    if not booked:
        return _move(row, to_state=WithdrawalState.FAILED, reason="mined without the contract's event for it")
    moved = _move(row, to_state=WithdrawalState.FINAL)
    logger.info("%s is final", row, extra={"event": "withdrawal_final", "tx_hash": receipt.attempt.hash})
    return moved


def _stop_if_unsigned(row: Withdrawal, sent: Transaction) -> bool:
    """A sweep to an address that is no longer the operator's would be refused by the signer for ever."""
    if sent.state != TransactionState.QUEUED or row.kind != WithdrawalKind.SWEEP or sweep_transfers.is_wanted(row):
        return False
    # The next look finds it cancelled, or signed before it could be: that one goes where it was sent.
    return commands.cancel(sent.pk, actor=_ACTOR, reason=sweep_transfers.objection(row))


def _move(row: Withdrawal, *, to_state: WithdrawalState, reason: str = "", **changes: Any) -> bool:
    """One conditional step; ``False`` if another worker took it."""
    if to_state in (WithdrawalState.FINAL, WithdrawalState.FAILED):
        changes["finished_at"] = timezone.now()
    moved = Withdrawal.objects.filter(pk=row.pk, state=row.state).update(state=to_state, reason=reason[:500], **changes)
    return bool(moved)


def apply_events(chain: HostChain, logs: Iterable[Mapping[str, Any]]) -> int:
    """Book this host's withdrawals among the logs of final blocks, whoever made them; returns how many."""
    found = [event for event in chain.marketplace.withdrawals(logs) if event.host.lower() == chain.host]
    if not found:
        return 0
    numbers = sorted({event.position.block_number for event in found})
    times = {block.number: block.time for block in chain.client.blocks(numbers) if block is not None}
    for event in found:
        with transaction.atomic():
            earnings.book_withdrawal(event, deployment=chain.key, at=times.get(event.position.block_number))
            cover(deployment=chain.key, token=event.token)
    return len(found)


def cover(*, deployment: str, token: str) -> int:
    """Mark what withdrawals cover as withdrawn, the oldest checkpoints first; returns how many.

    A withdrawal is of money, not of checkpoints: a checkpoint counts as withdrawn once all that was ever
    withdrawn of its token pays for it and for all before it. One that is covered in part stays SETTLED.
    """
    withdrawn = EarningTotal.objects.filter(
        deployment=deployment, token=token.lower(), kind=EarningKind.WITHDRAWAL, scope=ALL
    ).first()
    mine = Checkpoint.objects.filter(session__deployment=deployment, session__payment_token=token.lower())
    past = mine.filter(state=CheckpointState.WITHDRAWN).values_list("host_amount", flat=True).iterator()
    left = (0 if withdrawn is None else withdrawn.amount) - sum(amount or 0 for amount in past)
    moved = 0
    for row in mine.filter(state=CheckpointState.SETTLED).order_by("confirmed_at", "id").iterator():
        left -= row.host_amount or 0
        if left < 0:
            break
        moved += checkpoints.move(
            row.pk, from_state=CheckpointState.SETTLED, to_state=CheckpointState.WITHDRAWN, reason="withdrawn"
        )
    return moved
