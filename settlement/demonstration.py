"""A paid job from deposit to refund, as a user's client would do it, and the receipt for it.

Uses the running node over its public WebSocket and the embedded chain with play money. Guarantees
that every amount of the receipt is read back from the chain and compared with this node's ledger.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from web3 import HTTPProvider, Web3
from websockets.asyncio.client import ClientConnection, connect

from jobs.models import Session, SessionState
from settlement import chain_history, ledger
from settlement.chain import local
from settlement.chain.bindings import ModelRegistry, TestUSDC, events
from settlement.chain.deployment import transact
from settlement.chain.marketplace import AcceptedClaim, EndedJob, JobOrder, MarketplaceJob
from settlement.host_chain import HostChain
from settlement.models import Closing, Earning, EarningKind

# Base units of test USDC (6 decimals).
PRICE_PER_TOKEN = 2_000
DEPOSIT = 4_000_000
WANTED_CLAIMS = 2

_PATIENCE_SECONDS = 60
_PROMPTS = (
    ("Write a short story about a lighthouse keeper who befriends a whale.", 130),
    ("Explain to a child how a bicycle stays upright.", 120),
    ("Now tell me more about that.", 110),
    ("What would you cook with tomatoes, rice and beans?", 60),
    ("Say goodbye in one sentence.", 40),
)

Progress = Callable[[str], None]


class DemonstrationFailed(Exception):
    """A step of the demonstration did not happen in time. Says which."""


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What happened, read back from the chain. Amounts in base units of the job's token, gas in wei."""

    job: MarketplaceJob
    prompts: list[int]
    claims: list[AcceptedClaim]
    end: EndedJob
    gas: int
    user_received: int
    host_received: int
    differences: list[str] = field(default_factory=list)


class User:
    """A user with an unlocked account of the embedded chain."""

    def __init__(self, chain: HostChain) -> None:
        url = settings.ENVIRONMENT.rpc_urls[0]
        self._chain = chain
        self._w3 = Web3(HTTPProvider(url, request_kwargs={"timeout": 30}))
        self.account: ChecksumAddress = local.accounts(url)[5]
        assert chain.deployment.usdc is not None  # noqa: S101 - the embedded deployment has one
        self._usdc = TestUSDC(chain.deployment.usdc)

    def open_job(self) -> int:
        """Deposit test USDC into a job for this host; returns the job's id."""
        marketplace, spender = self._chain.marketplace, self._chain.deployment.job_marketplace
        transact(self._w3, self._usdc.mint(to=self.account, amount=DEPOSIT), sender=self.account)
        transact(self._w3, self._usdc.approve(spender=spender, value=DEPOSIT), sender=self.account)
        order = JobOrder(
            host=self._chain.host or "",
            token=self._usdc.address,
            deposit=DEPOSIT,
            price_per_token=PRICE_PER_TOKEN * marketplace.capabilities.price_precision,
            max_duration=timedelta(days=1),
            claim_interval=100,
            model_id=self._model_id(),
        )
        mined = transact(self._w3, marketplace.open_job(order), sender=self.account)
        for log in mined["logs"]:
            if bytes(log["topics"][0]) == events.SessionJobCreated.topic:
                return events.SessionJobCreated.decode(log).event.job_id
        raise DemonstrationFailed("the marketplace did not say which job it created")

    def _model_id(self) -> bytes:
        """Any approved model: the marketplaces whose jobs name one only ask that this host serves it."""
        assert self._chain.deployment.model_registry is not None  # noqa: S101 - the embedded deployment has one
        approved = self._chain.client.call(ModelRegistry(self._chain.deployment.model_registry).get_all_models())
        return approved[0] if approved else bytes(32)


def run(chain: HostChain, *, progress: Progress) -> Receipt:
    """Deposit, chat, claim, close, refund. Raises ``DemonstrationFailed``."""
    user = User(chain)
    job_id = user.open_job()
    progress(f"job {job_id}: {DEPOSIT} base units of test USDC deposited at {PRICE_PER_TOKEN} per token")
    prompts = asyncio.run(_chat(job_id, progress=progress))
    session = _wait_for_end(job_id, deployment=chain.key)
    progress(f"job {job_id}: closed ({session.state})")
    claims, end = chain_history.events_of_job(chain, job_id)
    job = chain.marketplace.find_job(chain.client, job_id)
    if job is None or end is None:
        raise DemonstrationFailed(f"the chain does not show the end of job {job_id}")
    # Balances would not do: the host earns from other jobs meanwhile.
    moves = _moves(chain, [*(claim.position.transaction_hash for claim in claims), end.position.transaction_hash])
    receipt = Receipt(
        job=job,
        prompts=prompts,
        claims=claims,
        end=end,
        gas=_sum(session, EarningKind.GAS),
        user_received=sum(value for receiver, value in moves if receiver == job.requester.lower()),
        host_received=sum(value for receiver, value in moves if receiver in _purses(chain)),
    )
    receipt.differences = list(_differences(receipt, session))
    receipt.differences += [f"{found.invariant} {found.message}" for found in ledger.verify(chain)]
    return receipt


async def _chat(job_id: int, *, progress: Progress) -> list[int]:
    """Prompt until two claims were made and a remainder is left; returns tokens per prompt."""
    tokens: list[int] = []
    address = settings.ENVIRONMENT.local_url.replace("http", "ws", 1) + "/v1/ws"
    async with connect(address) as socket:
        for turn in range(20):
            prompt, limit = _PROMPTS[turn % len(_PROMPTS)]
            text, used = await _prompt(socket, job_id, prompt=prompt, limit=limit, number=turn)
            tokens.append(used)
            progress(f"prompt {turn + 1}: {used} tokens  {' '.join(text.split())[:60]!r}")
            session = await _claimed_up(job_id)
            if session.checkpoint_count >= WANTED_CLAIMS and session.tokens_unsealed:
                break
        await socket.send(json.dumps({"type": "session_end"}))
        await _frame(socket, "session_end_ack")
    return tokens


async def _prompt(socket: ClientConnection, job_id: int, *, prompt: str, limit: int, number: int) -> tuple[str, int]:
    init = {"type": "session_init", "chain_id": settings.ENVIRONMENT.chain_id, "session_id": str(job_id)}
    await socket.send(json.dumps({**init, "jobId": str(job_id), "id": f"init-{number}"}))
    await _frame(socket, "session_init_ack")
    request = {"model": "default", "prompt": prompt, "max_tokens": limit, "temperature": 0.7, "stream": True}
    message = {"type": "prompt", "jobId": str(job_id), "prompt": prompt, "request": request, "id": f"prompt-{number}"}
    await socket.send(json.dumps(message))
    text = ""
    while True:
        frame = json.loads(await asyncio.wait_for(socket.recv(), timeout=_PATIENCE_SECONDS))
        if frame["type"] == "stream_chunk":
            text += frame["content"]
        elif frame["type"] == "stream_end":
            return text, int(frame["tokens_used"])
        elif frame["type"] == "error":
            raise DemonstrationFailed(f"the node refused the prompt: {frame['message']}")


async def _frame(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        frame: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), timeout=_PATIENCE_SECONDS))
        if frame["type"] == kind:
            return frame
        if frame["type"] == "error":
            raise DemonstrationFailed(f"the node answered {kind} with an error: {frame['message']}")


async def _claimed_up(job_id: int) -> Session:
    """The session once everything claimable has been claimed and confirmed."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        session = await sync_to_async(_session)(job_id)
        waiting = session.tokens_unsealed >= settings.ENVIRONMENT.checkpoint_threshold
        if not waiting and session.tokens_claimed == session.tokens_sealed:
            return session
        await asyncio.sleep(0.2)
    raise DemonstrationFailed(f"job {job_id}: no confirmed claim within {_PATIENCE_SECONDS} s")


def _session(job_id: int) -> Session:
    return Session.objects.filter(job_id=job_id).order_by("-id")[0]


def _wait_for_end(job_id: int, *, deployment: str) -> Session:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        session = Session.objects.get(deployment=deployment, job_id=job_id)
        refunded = session.earnings.filter(kind=EarningKind.REFUND).exists()
        if session.state == SessionState.COMPLETED and refunded:
            return session
        time.sleep(0.2)
    raise DemonstrationFailed(f"job {job_id} was not completed within {_PATIENCE_SECONDS} s")


def _moves(chain: HostChain, transactions: Sequence[str]) -> list[tuple[str, int]]:
    """Receiver and base units of every transfer of test USDC out of the marketplace in these transactions."""
    found = []
    for transaction in dict.fromkeys(transactions):
        mined = chain.client.receipt(transaction)
        if mined is None:
            raise DemonstrationFailed(f"the chain has no receipt of {transaction}")
        for log in mined.logs:
            if bytes(HexBytes(log["topics"][0])) != events.Transfer.topic:
                continue
            seen = events.Transfer.decode(log)
            if seen.address == chain.deployment.usdc and seen.event.from_ == chain.deployment.job_marketplace:
                found.append((seen.event.to.lower(), seen.event.value))
    return found


def _purses(chain: HostChain) -> set[str]:
    """Where a marketplace may put what the host earned."""
    return {str(address).lower() for address in (chain.deployment.host_earnings, chain.host)}


def _sum(session: Session, kind: EarningKind) -> int:
    amounts: list[int] = list(Earning.objects.filter(session=session, kind=kind).values_list("amount", flat=True))
    return sum(amounts)


def _unclaimable(session: Session) -> int:
    """Tokens that the node wrote down as lost, where no claim is small enough for the last of them."""
    closing = Closing.objects.filter(session=session).first()
    return 0 if closing is None else closing.tokens_unclaimable


def _differences(receipt: Receipt, session: Session) -> list[str]:
    """Every figure of the chain that the ledger does not share."""
    job, claims = receipt.job, receipt.claims
    tokens = sum(claim.tokens for claim in claims)
    # Where a claim's own transaction pays, its events say so; elsewhere the end of the job pays for all.
    paid_by_events = receipt.end.host_amount if receipt.end.settles else sum(claim.host_amount for claim in claims)
    pairs = {
        "tokens: prompts and ledger": (sum(receipt.prompts), session.tokens_tracked),
        "tokens: ledger and claims": (session.tokens_claimed, tokens),
        "tokens: left unclaimed": (session.tokens_tracked - session.tokens_claimed, _unclaimable(session)),
        "tokens: claims and job": (tokens, job.tokens_used),
        "host: ledger and events": (_sum(session, EarningKind.HOST), paid_by_events),
        "host: events and job": (paid_by_events, job.paid_to_host),
        "host: job and transfers": (job.paid_to_host, receipt.host_received),
        "treasury: ledger and job": (_sum(session, EarningKind.TREASURY), job.paid_to_treasury),
        "refund: ledger and event": (_sum(session, EarningKind.REFUND), receipt.end.refund),
        "refund: event and job": (receipt.end.refund, job.refunded),
        "deposit: host + treasury + refund": (job.deposit, job.paid_to_host + job.paid_to_treasury + job.refunded),
        "user: refund and transfers": (job.refunded, receipt.user_received),
    }
    return [f"{name}: {left} ≠ {right}" for name, (left, right) in pairs.items() if left != right]
