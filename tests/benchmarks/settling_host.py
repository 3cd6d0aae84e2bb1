"""The host that the settlement benchmark measures; prints one JSON object. Run by ``tests.benchmarks.settlement``."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fabstir_site.settings")
django.setup()

# The applications' modules need Django to be set up first.
from django.db import connection, transaction  # noqa: E402
from django.utils import timezone  # noqa: E402
from eth_account.signers.local import LocalAccount  # noqa: E402
from eth_utils.address import to_checksum_address  # noqa: E402

from fabstir_site.celery import app  # noqa: E402
from jobs import sessions  # noqa: E402
from jobs.models import DeliveryPath, InferenceRequest, RequestState, Session, TokenUsage  # noqa: E402
from jobs.protocol import SessionReference  # noqa: E402
from jobs.spending import SpendingPolicy  # noqa: E402
from settlement import claims, earnings, following, ledger, proving, statements  # noqa: E402
from settlement.chain import local  # noqa: E402
from settlement.chain.bindings import JobMarketplace  # noqa: E402
from settlement.chain.client import ChainClient  # noqa: E402
from settlement.host_chain import HostChain, host_account, host_chain  # noqa: E402
from settlement.job_lookup import ChainJobSource  # noqa: E402
from settlement.models import Checkpoint, CheckpointEvent, CheckpointState  # noqa: E402
from settlement.proofs.registry import accepted_prover  # noqa: E402
from settlement.proofs.witness import Witness  # noqa: E402
from tests.flows.world import build_flow_world  # noqa: E402

TOKENS_PER_CLAIM = 100
PRICE = 10**9
RAW_TRANSACTIONS = 300
LONGEST_SECONDS = 600
"""Of the benchmark itself, lest a broken pipeline keeps it for ever."""


def prepare(url: str, folder: str) -> dict[str, object]:
    """Deploy for a host whose key is made here."""
    world = build_flow_world(url, folder=Path(folder))
    return {"key": world.key}


def throughput(claims_wanted: int, jobs: int) -> dict[str, float]:
    """SEALED → CONFIRMED by the same functions that the worker's tasks run, and plain transactions before it."""
    chain = host_chain()
    url = _url(chain.client)
    # Every block a second later: the rate rule, which counts whole seconds, is never what is waited for.
    local.rpc(url, "anvil_setBlockTimestampInterval", [1])
    raw = _raw_rate(chain.client, host_account())
    raw_claims = _raw_claim_rate(chain, host_account())
    per_job = claims_wanted // jobs
    opened = _open_jobs(url, jobs)
    for job_id in opened:
        session = _session(job_id)
        _generate(session, per_job * TOKENS_PER_CLAIM, windows=per_job)
        _seal(session, per_job)
    # As a worker does once it has started.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    while _confirmed() < claims_wanted:
        proving.prove_due(chain)
        claims.submit_due(chain)
        assert chain.manager is not None
        chain.manager.broadcast()
        # A chain goes on without this host; by its clock, the next claim of each job is due in the next block.
        local.rpc(url, "evm_mine", [])
        chain.manager.watch()
        following.follow_transactions(chain)
        earnings.book_gas_due(chain)
        if time.perf_counter() - started > LONGEST_SECONDS:
            raise SystemExit(f"{_confirmed()} of {claims_wanted} claims confirmed after {LONGEST_SECONDS} s")
    seconds = time.perf_counter() - started
    violations = ledger.verify(chain)
    if violations:
        raise SystemExit(f"the ledger is broken: {violations[:5]}")
    rate = claims_wanted / seconds
    return {
        "plain signed transactions, one after another, per second": raw,
        f"checkpoints from sealed to confirmed, {claims_wanted} of {jobs} jobs, per second": rate,
        "checkpoints / plain signed transactions": rate / raw,
        "plain signed claims, one after another, per second": raw_claims,
        "checkpoints / plain signed claims": rate / raw_claims,
    }


def many_jobs(open_jobs: int, usage_rows: int) -> dict[str, float]:
    """A chain and a database with so many open jobs and usage rows; a tenth of the jobs are not in the database."""
    chain = host_chain()
    started = time.perf_counter()
    job_ids = _open_jobs(_url(chain.client), open_jobs)
    known = job_ids[: open_jobs * 9 // 10]
    rows_each = usage_rows // len(known)
    _bulk_sessions(known, rows_each=rows_each)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return {"seconds to set up the many jobs": time.perf_counter() - started}


def first_round() -> dict[str, float]:
    """One pass of every step of the schedule, as the worker of a restarted node takes them."""
    app.loader.import_default_modules()
    seconds = {}
    for entry in app.conf.beat_schedule.values():
        started = time.perf_counter()
        app.tasks[entry["task"]]()
        seconds[f"step {entry['task']}, s"] = time.perf_counter() - started
    for grouping in statements.Grouping:
        started = time.perf_counter()
        lines = sum(1 for _ in statements.statement(by=grouping))
        seconds[f"statement by {grouping} ({lines} lines), s"] = time.perf_counter() - started
    return seconds


def _url(client: ChainClient) -> str:
    del client
    return os.environ["RPC_URL"]


def _raw_rate(client: ChainClient, account: LocalAccount | None) -> float:
    """Sign, send, receipt: what any sender of transactions has to do at least."""
    assert account is not None
    return _rate_of(client, account, [(account.address, b"")] * RAW_TRANSACTIONS, gas=21_000)


def _raw_claim_rate(chain: HostChain, account: LocalAccount | None) -> float:
    """The same with claims, of jobs that this ledger does not know: what the marketplace itself takes is in it."""
    assert account is not None
    prover = accepted_prover(chain.client, chain.marketplace)
    sent = []
    for job_id in _open_jobs(_url(chain.client), RAW_TRANSACTIONS):
        witness = Witness(
            chain_id=chain.deployment.chain_id,
            marketplace=chain.deployment.job_marketplace.lower(),
            job_id=job_id,
            host=chain.host or "",
            checkpoint_index=0,
            from_token=0,
            tokens_claimed=TOKENS_PER_CLAIM,
            timestamp_ms=int(time.time() * 1000),
        )
        proof = prover.prove(witness).data
        call = chain.marketplace.claim(job_id=job_id, tokens=TOKENS_PER_CLAIM, proof=proof)
        sent.append((str(call.to), call.data))
    return _rate_of(chain.client, account, sent, gas=1_000_000)


def _rate_of(client: ChainClient, account: LocalAccount, calls: Sequence[tuple[str, bytes]], *, gas: int) -> float:
    nonce = client.transaction_count(account.address)
    started = time.perf_counter()
    hashes = []
    for number, (to, data) in enumerate(calls):
        fields = {"type": 2, "chainId": local.CHAIN_ID, "nonce": nonce + number, "to": to, "value": 0, "data": data}
        fees = {"gas": gas, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**6}
        signed = account.sign_transaction({**fields, **fees})
        client.send_raw(bytes(signed.raw_transaction))
        hashes.append("0x" + signed.hash.hex().removeprefix("0x"))
    for transaction_hash in hashes:
        # A node takes a transaction over before it has mined it.
        while (receipt := client.receipt(transaction_hash)) is None:
            assert time.perf_counter() < started + LONGEST_SECONDS
        assert receipt.succeeded
    return len(calls) / (time.perf_counter() - started)


def _open_jobs(url: str, count: int) -> list[int]:
    chain = host_chain()
    marketplace = JobMarketplace(chain.deployment.job_marketplace)
    user = local.accounts(url)[5]
    local.fund(url, address=user, wei=10**26)
    first = chain.client.call(marketplace.next_job_id())
    create = marketplace.create_session_job(
        host=to_checksum_address(chain.host or ""),
        price_per_token=PRICE,
        max_duration=30 * 86400,
        proof_interval=100,
        value=10**16,
    )
    sent = {
        "from": user,
        "to": create.to,
        "data": "0x" + create.data.hex(),
        "value": hex(create.value),
        "gas": hex(10**6),
    }
    for _ in range(count):
        local.rpc(url, "eth_sendTransaction", [sent])
    return list(range(first, first + count))


def _session(job_id: int) -> Session:
    job = ChainJobSource()._find(job_id)
    assert job is not None
    opened = sessions.open_job_session(job, reference=SessionReference(job_id=job_id), policy=SpendingPolicy.OPEN)
    return Session.objects.get(pk=opened.id)


def _generate(session: Session, tokens: int, *, windows: int) -> None:
    request = InferenceRequest(
        session=session,
        path=DeliveryPath.HTTP_JSON,
        model="bench",
        max_tokens=tokens,
        completion_tokens=tokens,
        state=RequestState.FINISHED,
        finished_at=timezone.now(),
    )
    request.save()
    each = tokens // windows
    TokenUsage.objects.bulk_create(
        TokenUsage(session=session, request=request, first_index=number * each, count=each, path=request.path)
        for number in range(windows)
    )
    Session.objects.filter(pk=session.pk).update(tokens_tracked=tokens)


def _seal(session: Session, count: int) -> None:
    with transaction.atomic():
        rows = Checkpoint.objects.bulk_create(
            Checkpoint(
                session=session,
                index=number,
                from_token=number * TOKENS_PER_CLAIM,
                to_token=(number + 1) * TOKENS_PER_CLAIM,
            )
            for number in range(count)
        )
        CheckpointEvent.objects.bulk_create(
            CheckpointEvent(checkpoint=row, to_state=CheckpointState.SEALED) for row in rows
        )
        Session.objects.filter(pk=session.pk).update(tokens_sealed=count * TOKENS_PER_CLAIM, checkpoint_count=count)


def _confirmed() -> int:
    return Checkpoint.objects.paid().count()


def _bulk_sessions(job_ids: list[int], *, rows_each: int) -> None:
    """Open sessions with a tail of fewer tokens than a claim needs, as a busy host has them."""
    template = _session(job_ids[0])
    now = timezone.now()
    fields = {
        field.attname: getattr(template, field.attname)
        for field in Session._meta.concrete_fields
        if field.attname not in ("id", "job_id", "created_at")
    }
    fields |= {"last_activity_at": now, "tokens_tracked": rows_each}
    Session.objects.bulk_create((Session(job_id=job_id, **fields) for job_id in job_ids[1:]), batch_size=500)
    Session.objects.filter(pk=template.pk).update(tokens_tracked=rows_each, last_activity_at=now)
    pks = Session.objects.order_by("id").values_list("pk", flat=True)
    requests = InferenceRequest.objects.bulk_create(
        (
            InferenceRequest(
                session_id=pk,
                path=DeliveryPath.HTTP_JSON,
                model="bench",
                max_tokens=rows_each,
                completion_tokens=rows_each,
                state=RequestState.FINISHED,
                finished_at=now,
            )
            for pk in pks
        ),
        batch_size=500,
    )
    usage = (
        TokenUsage(
            session_id=request.session_id,
            request_id=request.pk,
            first_index=index,
            count=1,
            path=request.path,
            created_at=now,
        )
        for request in requests
        for index in range(rows_each)
    )
    for batch in iter(lambda: list(itertools.islice(usage, 20_000)), []):
        TokenUsage.objects.bulk_create(batch, batch_size=2_000)
    # They still have time: none of them is to be closed while the benchmark runs.
    Session.objects.update(job_expires_at=now + timedelta(days=30))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    actions: dict[str, Callable[..., dict[str, float]]] = {
        "throughput": throughput,
        "many_jobs": many_jobs,
        "first_round": first_round,
    }
    figures = prepare(*arguments) if what == "prepare" else actions[what](*map(int, arguments))
    sys.stdout.write(json.dumps(figures) + "\n")
