"""Rows for tests, made by plain functions. Every row keeps the constraints of its table; hashes, job ids
and nonces are new at each call.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from jobs import api_keys
from jobs.models import ApiKey, DeliveryPath, InferenceRequest, RequestState, Session, TokenUsage
from nodes.models import Host, ServedModel
from settlement.models import (
    Attempt,
    AttemptState,
    ChainCursor,
    Checkpoint,
    CheckpointEvent,
    CheckpointState,
    ContractDeployment,
    Earning,
    EarningKind,
    Receipt,
    Sender,
    Transaction,
    TransactionKind,
    TransactionState,
    Withdrawal,
    WithdrawalState,
)

CHAIN_ID = 31337
MARKETPLACE = "0x" + "a1" * 20
USDC = "0x" + "c1" * 20
NATIVE = "0x" + "00" * 20
HOST = "0x" + "b0" * 20
DEPOSITOR = "0x" + "d0" * 20
DEPLOYMENT = f"{CHAIN_ID}:{MARKETPLACE}"
FEE_BASIS_POINTS = 1000
PRICE = 2000  # base units of USDC per token: 0.002 USDC

# The way of a paid checkpoint, in order; a state's history is everything before it.
WAY = (
    CheckpointState.SEALED,
    CheckpointState.PROVING,
    CheckpointState.PROVED,
    CheckpointState.QUEUED,
    CheckpointState.SENT,
    CheckpointState.MINED,
    CheckpointState.CONFIRMED,
    CheckpointState.SETTLED,
    CheckpointState.WITHDRAWN,
)
_PAID = WAY[WAY.index(CheckpointState.CONFIRMED) :]
_TRANSACTION_OF = {
    CheckpointState.QUEUED: TransactionState.QUEUED,
    CheckpointState.SENT: TransactionState.SENT,
    CheckpointState.MINED: TransactionState.MINED,
    CheckpointState.CONFIRMED: TransactionState.FINAL,
    CheckpointState.SETTLED: TransactionState.FINAL,
    CheckpointState.WITHDRAWN: TransactionState.FINAL,
}
_numbers = itertools.count(1)


def new_hash() -> str:
    """A 32-byte hash that no other call returned."""
    return f"0x{next(_numbers):064x}"


def make_contracts(deployment: str = DEPLOYMENT, *, usdc: str = USDC) -> list[ContractDeployment]:
    """The contracts of a deployment as read from the chain."""
    now = timezone.now()
    terms = {"treasury": "0x" + "7e" * 20, "minimum_claim_tokens": 100}
    return [
        ContractDeployment.objects.create(
            deployment=deployment,
            chain_id=int(deployment.split(":")[0]),
            generation="fabstir-host-1",
            name=name,
            address=address,
            code_hash=new_hash(),
            fee_basis_points=FEE_BASIS_POINTS if name == "job_marketplace" else None,
            claimants="the host that a job names, and nobody else" if name == "job_marketplace" else "",
            settings=terms if name == "job_marketplace" else {},
            checked_at=now,
        )
        for name, address in (("job_marketplace", deployment.split(":")[1]), ("usdc", usdc))
    ]


def make_host(*, chain_id: int = CHAIN_ID, **fields: Any) -> Host:
    return Host.objects.create(
        chain_id=chain_id,
        address=fields.pop("address", HOST),
        api_url="http://127.0.0.1:8080",
        public_key="0x02" + "ab" * 32,
        registered=True,
        checked_at=timezone.now(),
        **fields,
    )


def make_served_model(model_id: str = "small-model", **fields: Any) -> ServedModel:
    values: dict[str, Any] = {
        "aliases": ["default"],
        "path": f"/models/{model_id}",
        "source": "a package",
        "architecture": "LlamaForCausalLM",
        "quantization": "int8",
        "context_length": 2048,
        "vocabulary_size": 49152,
        "manifest_sha256": "ab" * 32,
        "is_default": True,
    }
    return ServedModel.objects.create(id=model_id, **{**values, **fields})


def make_cursor(deployment: str = DEPLOYMENT, *, block_number: int = 12) -> ChainCursor:
    return ChainCursor.objects.create(deployment=deployment, block_number=block_number, block_hash=new_hash())


def make_session(*, job_id: int | None = -1, **fields: Any) -> Session:
    """A session; with a job of its own unless ``job_id`` is ``None``."""
    values: dict[str, Any] = {"client_session_id": f"client-{next(_numbers)}", "last_activity_at": timezone.now()}
    if job_id is not None:
        started = timezone.now()
        values |= {
            "deployment": DEPLOYMENT,
            "job_id": next(_numbers) if job_id == -1 else job_id,
            "host": HOST,
            "depositor": DEPOSITOR,
            "payment_token": USDC,
            "deposit": 1000 * PRICE,
            "price_per_token": PRICE,
            "token_budget": 1000,
            "job_started_at": started,
            "job_expires_at": started + timedelta(days=1),
            "idle_timeout_seconds": 3600,
        }
    return Session.objects.create(**{**values, **fields})


def add_request(session: Session, *, tokens: int, window: int = 16, **fields: Any) -> InferenceRequest:
    """A finished request of ``tokens`` completion tokens, counted in usage rows that tile the session."""
    values: dict[str, Any] = {
        "path": DeliveryPath.HTTP_SSE,
        "model": "small-model",
        "max_tokens": tokens,
        "prompt_tokens": 7,
        "completion_tokens": tokens,
        "state": RequestState.FINISHED,
        "finish_reason": "stop",
        "finished_at": timezone.now(),
    }
    request = InferenceRequest.objects.create(session=session, **{**values, **fields})
    first = session.tokens_tracked
    for start in range(first, first + tokens, window):
        count = min(window, first + tokens - start)
        TokenUsage.objects.create(session=session, request=request, first_index=start, count=count, path=request.path)
    session.tokens_tracked += tokens
    session.save(update_fields=["tokens_tracked"])
    return request


def make_transaction(*, state: TransactionState = TransactionState.FINAL, **fields: Any) -> Transaction:
    """A transaction with the attempts and the receipt that its state implies."""
    number = next(_numbers)
    waiting = state in (TransactionState.QUEUED, TransactionState.FAILED)
    values: dict[str, Any] = {
        "key": f"test:{number}",
        "kind": TransactionKind.CLAIM,
        "chain_id": CHAIN_ID,
        "sender": HOST,
        "to": MARKETPLACE,
        "data": "0x" + "5e" * 100,
        "nonce": None if waiting else number,
    }
    transaction = Transaction.objects.create(state=state, **{**values, **fields})
    if not waiting:
        _add_attempts(transaction)
    return transaction


def _add_attempts(transaction: Transaction) -> None:
    """A first attempt that a second one, with higher fees, replaced."""
    now = timezone.now()
    mined = transaction.state in (TransactionState.MINED, TransactionState.FINAL, TransactionState.REVERTED)
    states = (AttemptState.REPLACED, AttemptState.MINED) if mined else (AttemptState.REPLACED, AttemptState.SENT)
    for number, state in enumerate(states):
        attempt = Attempt.objects.create(
            transaction=transaction,
            nonce=transaction.nonce,
            hash=new_hash(),
            raw="0x02" + "f8" * 120,
            gas_limit=250_000,
            max_fee_per_gas=(2 + number) * 10**9,
            max_priority_fee_per_gas=10**9 + number * 10**8,
            state=state,
            sent_at=now,
        )
    if mined:
        succeeded = transaction.state != TransactionState.REVERTED
        Receipt.objects.create(
            transaction=transaction,
            attempt=attempt,
            block_number=next(_numbers),
            block_hash=new_hash(),
            block_time=now,
            succeeded=succeeded,
            gas_used=120_000,
            effective_gas_price=10**9 + 7,
            revert_reason="" if succeeded else "ClaimTooFast",
        )


def add_checkpoint(
    session: Session, *, tokens: int = 100, state: CheckpointState = CheckpointState.CONFIRMED, **fields: Any
) -> Checkpoint:
    """The session's next checkpoint with its history, and for a paid one its transaction and earnings.

    Counts the tokens first if the session has not got them.
    """
    missing = session.tokens_sealed + tokens - session.tokens_tracked
    if missing > 0:
        add_request(session, tokens=missing)
    paid = state in _PAID
    transaction = make_transaction(state=_TRANSACTION_OF[state]) if state in _TRANSACTION_OF else None
    checkpoint = Checkpoint.objects.create(
        session=session,
        index=session.checkpoint_count,
        from_token=session.tokens_sealed,
        to_token=session.tokens_sealed + tokens,
        state=state,
        transaction=transaction,
        prover="mock" if state != CheckpointState.SEALED else "",
        proof=b"\x01" * 64 if state != CheckpointState.SEALED else None,
        proof_hash=new_hash() if state != CheckpointState.SEALED else "",
        **{**_payment(session, tokens=tokens, paid=paid), **fields},
    )
    _add_history(checkpoint)
    if paid:
        _add_earnings(checkpoint)
    session.tokens_sealed += tokens
    session.tokens_claimed += tokens if paid else 0
    session.checkpoint_count += 1
    session.save(update_fields=["tokens_sealed", "tokens_claimed", "checkpoint_count"])
    return checkpoint


def _payment(session: Session, *, tokens: int, paid: bool) -> dict[str, int | datetime]:
    if not paid:
        return {}
    gross = tokens * session.price_per_token
    treasury = gross * FEE_BASIS_POINTS // 10_000
    return {
        "gross": gross,
        "host_amount": gross - treasury,
        "treasury_amount": treasury,
        "confirmed_at": timezone.now(),
    }


def _add_history(checkpoint: Checkpoint) -> None:
    state = CheckpointState(checkpoint.state)
    passed = [*WAY[: WAY.index(state) + 1]] if state in WAY else [CheckpointState.SEALED, state]
    for before, after in itertools.pairwise(["", *passed]):
        CheckpointEvent.objects.create(
            checkpoint=checkpoint,
            from_state=before,
            to_state=after,
            reason=checkpoint.reason if after == state else "",
        )


def _add_earnings(checkpoint: Checkpoint) -> None:
    assert checkpoint.transaction is not None
    assert checkpoint.host_amount is not None and checkpoint.treasury_amount is not None
    receipt = checkpoint.transaction.receipt
    movements = (
        (EarningKind.HOST, checkpoint.session.payment_token, checkpoint.host_amount, 0),
        (EarningKind.TREASURY, checkpoint.session.payment_token, checkpoint.treasury_amount, 1),
        (EarningKind.GAS, NATIVE, receipt.fee, -1),
    )
    for kind, token, amount, log_index in movements:
        Earning.objects.create(
            deployment=checkpoint.session.deployment,
            session=checkpoint.session,
            kind=kind,
            token=token,
            amount=amount,
            transaction_hash=receipt.attempt.hash,
            log_index=log_index,
            block_number=receipt.block_number,
            block_hash=receipt.block_hash,
        )


def make_withdrawal(*, state: WithdrawalState = WithdrawalState.REQUESTED, **fields: Any) -> Withdrawal:
    """A withdrawal of all USDC; a final one with its transaction."""
    values: dict[str, Any] = {
        "deployment": DEPLOYMENT,
        "tokens": [USDC],
        "request_key": f"test:{next(_numbers)}",
        "requested_by": "somebody",
        "finished_at": timezone.now() if state == WithdrawalState.FINAL else None,
    }
    if state in (WithdrawalState.SENT, WithdrawalState.FINAL):
        mined = TransactionState.FINAL if state == WithdrawalState.FINAL else TransactionState.SENT
        values["transaction"] = make_transaction(state=mined, kind=TransactionKind.WITHDRAW)
    return Withdrawal.objects.create(state=state, **{**values, **fields})


def make_world(*, sessions: int = 1) -> list[Session]:
    """Contracts, host, model and cursor once, and sessions with a checkpoint in each of several states."""
    if not ContractDeployment.objects.exists():
        make_contracts()
        make_host()
        make_served_model()
        make_cursor()
        make_withdrawal(state=WithdrawalState.FINAL)
        Sender.objects.create(chain_id=31337, address="0x" + "5e" * 20)
        api_keys.issue(ApiKey(name="words of a customer"))
    return [make_settled_session() for _ in range(sessions)]


def make_settled_session() -> Session:
    """A session with two requests and checkpoints that are paid, under way, waiting and given up."""
    session = make_session()
    add_request(session, tokens=110, path=DeliveryPath.WS_PROMPT)
    add_checkpoint(session, state=CheckpointState.SETTLED)
    add_checkpoint(session, state=CheckpointState.CONFIRMED)
    add_checkpoint(session, state=CheckpointState.SENT)
    add_checkpoint(session, state=CheckpointState.PROVED)
    add_checkpoint(
        session,
        state=CheckpointState.RETRY_AT,
        retry_at=timezone.now() + timedelta(minutes=1),
        retries=1,
        reason="the chain is away",
    )
    add_checkpoint(session, state=CheckpointState.FAILED, reason="JobNotActive")
    return session
