"""Figures of the money for Prometheus: tokens, checkpoints, transactions and earnings, as the ledger has them.

Read from the database at each look, so that every process shows the same and a restart changes nothing;
written by hand, since amounts are whole numbers beyond what a float holds. Works while the chain is away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from django.db.models import Count

from settlement import ledger, statements
from settlement.models import Checkpoint, CheckpointState, LedgerCheck, Transaction, TransactionState, Withdrawal

Samples = Iterable[tuple[Mapping[str, str], int]]


def exposition() -> Iterator[str]:
    """The lines, with their ends."""
    tokens = statements.token_counts()
    yield from gauge(
        "fabstir_ledger_mismatch",
        "Violations of a ledger invariant as of the last check (manage.py verify_ledger).",
        [({"invariant": name}, count) for name, count in ledger.mismatches().items()],
    )
    yield from gauge(
        "fabstir_ledger_checked_timestamp_seconds",
        "When a part of the ledger was last checked.",
        [({"part": check.part}, int(check.at.timestamp())) for check in LedgerCheck.objects.all()],
    )
    yield from gauge("fabstir_tokens_tracked", "Completion tokens of jobs counted.", [({}, tokens.tracked)])
    yield from gauge("fabstir_tokens_sealed", "Of these, held by a checkpoint.", [({}, tokens.sealed)])
    yield from gauge("fabstir_tokens_claimed", "Of these, accepted by the chain for good.", [({}, tokens.claimed)])
    yield from gauge("fabstir_checkpoints", "Checkpoints by state.", _by_state(Checkpoint, CheckpointState))
    yield from gauge("fabstir_transactions", "Transactions by state.", _by_state(Transaction, TransactionState))
    yield from gauge(
        "fabstir_withdrawals_unfinished", "Withdrawals under way.", [({}, Withdrawal.objects.unfinished().count())]
    )
    lines = list(statements.statement())
    for name, meaning in (
        ("accrued", "What the tracked tokens are worth, before the treasury's share."),
        ("host", "Credited to the host."),
        ("treasury", "Credited to the treasury."),
        ("refund", "Refunded to depositors."),
        ("gas", "Gas paid by the host."),
        ("withdrawn", "Withdrawn by the host."),
        ("swept", "Swept to the operator's address."),
    ):
        yield from gauge(
            f"fabstir_earnings_{name}_base_units",
            f"{meaning} Exact in /admin; a Prometheus value keeps 15 digits.",
            [({"deployment": line.deployment, "token": line.token}, getattr(line, name)) for line in lines],
        )


def _by_state(
    model: type[Checkpoint] | type[Transaction], states: type[CheckpointState] | type[TransactionState]
) -> Samples:
    counts = dict(model.objects.order_by().values_list("state").annotate(Count("pk")))
    return [({"state": state.value}, counts.get(state.value, 0)) for state in states]


def gauge(name: str, meaning: str, samples: Samples) -> Iterator[str]:
    """A gauge of whole numbers."""
    yield f"# HELP {name} {meaning}\n# TYPE {name} gauge\n"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inner}}} {value}\n" if inner else f"{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
