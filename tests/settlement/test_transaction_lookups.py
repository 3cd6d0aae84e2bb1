"""What a turn and a watch read of the table: by an index, and only what is unfinished."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from settlement.models import Transaction, TransactionState
from tests.fakes.scripted_rpc import ScriptedRpc
from tests.settlement.conftest import Wallet

pytestmark = pytest.mark.django_db


def _plans(queries: CaptureQueriesContext) -> list[tuple[str, str]]:
    """Each SELECT on transactions with how the database would read it."""
    found = []
    with connection.cursor() as cursor:
        for query in queries.captured_queries:
            words = query["sql"]
            if words.startswith("SELECT") and 'FROM "settlement_transaction"' in words:
                cursor.execute(f"EXPLAIN QUERY PLAN {words}")
                found.append((words, " | ".join(str(row[-1]) for row in cursor.fetchall())))
    return found


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's plans")
def test_no_lookup_walks_all_transactions_there_ever_were(wallet: Wallet, peer: ScriptedRpc) -> None:
    Transaction.objects.bulk_create(
        Transaction(
            key=f"old {number}",
            kind="claim",
            chain_id=wallet.chain_id,
            sender=wallet.signer.address,
            to=wallet.signer.address,
            data="0x",
            nonce=number,
            state=TransactionState.FINAL,
        )
        for number in range(2000)
    )
    peer.on("eth_getTransactionCount", hex(2000))
    wallet.enqueue()
    with CaptureQueriesContext(connection) as queries:
        assert wallet.broadcast() == 1
        wallet.watch()
    plans = _plans(queries)
    assert len(plans) >= 5
    walked = [(words, plan) for words, plan in plans if "SCAN settlement_transaction" in plan and "INDEX" not in plan]
    assert walked == []
    by_state = [plan for words, plan in plans if '"state" = ' in words or '"state" IN' in words]
    assert by_state
    assert all("state=?" in plan or "nonce>?" in plan or "nonce=?" in plan for plan in by_state), [
        plan for plan in by_state if "state=?" not in plan
    ]
